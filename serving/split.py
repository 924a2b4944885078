"""Two predictors as one: a share of the questions goes to a canary, or every answer is also asked of a shadow whose answer nobody sees.

In KServe's Standard mode traffic is split in front of the transformer only; behind it, the transformer itself must divide.
"""

import asyncio
import hashlib
import logging
from collections.abc import Sequence

import orjson

from serving.guard import Unavailable
from serving.monitor import Metrics
from serving.transformer import usable
from serving.upstream import Upstream

WAITING = 16  # shadow questions at a time; more are left out
_log = logging.getLogger("concordant.split")


class Split(Upstream):
    """Asks the champion, or the canary for `percent` of the questions; with 0 percent the canary is a shadow.

    The same patients go to the same model, as their records grow. Where the canary gives no answer, or none that can be passed on, the
    champion is asked, so that nobody waits for a model on trial.
    """

    def __init__(self, champion: str, canary: str, percent: int, metrics: Metrics) -> None:
        super().__init__(champion)
        self._canary, self._percent, self._metrics = Upstream(canary, usable if percent else None), percent, metrics
        self._shadows: set[asyncio.Task[None]] = set()

    async def ask(self, path: str, body: bytes, request_id: str, whom: Sequence[str] = ()) -> bytes:
        """As one predictor. Raises Unavailable where the champion gives no answer."""
        if self._percent and _bucket(whom) < self._percent:
            try:
                return await self._canary.ask(path, body, request_id, whom)
            except Unavailable:
                _log.warning("the canary gave no answer, the champion is asked", extra={"request": request_id})
        told = await super().ask(path, body, request_id)
        if not self._percent and path.endswith(":predict"):
            self._shadow(path, body, request_id, told)
        return told

    async def close(self) -> None:
        """Close the connections to both; a shadow's answer is no longer waited for."""
        for task in self._shadows:
            task.cancel()
        await asyncio.gather(*self._shadows, return_exceptions=True)
        await self._canary.close()
        await super().close()

    def _shadow(self, path: str, body: bytes, request_id: str, told: bytes) -> None:
        if len(self._shadows) >= WAITING:
            self._metrics.shadow.labels("left out").inc()
            return
        task = asyncio.get_running_loop().create_task(self._compared(path, body, request_id, told))
        self._shadows.add(task)
        task.add_done_callback(self._shadows.discard)

    async def _compared(self, path: str, body: bytes, request_id: str, told: bytes) -> None:
        try:
            other = await self._canary.ask(path, body, request_id)
            pairs = list(zip(_choices(told), _choices(other), strict=True))
        except (Unavailable, ValueError, KeyError, TypeError):
            self._metrics.shadow.labels("no answer").inc()
            return
        for mine, its in pairs:
            self._metrics.shadow.labels("same" if mine == its else "different").inc()


def _bucket(whom: Sequence[str]) -> int:
    """0 to 99, the same for the same patients whatever is known of them."""
    return int.from_bytes(hashlib.sha256("\n".join(whom).encode()).digest()[:8], "big") % 100


def _choices(told: bytes) -> list[tuple[str | None, str | None]]:
    return [(answer["recommended"], answer["abstained"]) for answer in orjson.loads(told)["predictions"]]
