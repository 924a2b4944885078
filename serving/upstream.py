"""The predictor as the transformer sees it: one second, one retry where nothing was sent, and a breaker that stops asking what is down."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from serving.guard import Unavailable

TIMEOUT_S = 1.0
FAILURES, OPEN_S = 5, 10.0
LARGEST_ANSWER = 8_000_000


@dataclass
class Breaker:
    """Open after `FAILURES` in a row for `OPEN_S`; then one request tries, and closes it or opens it again."""

    failed: int = 0
    since: float = 0.0

    def closed(self) -> bool:
        """Whether to ask. Where it has been open long enough, the one who asks takes the trial and the others still wait."""
        if self.failed < FAILURES:
            return True
        if time.monotonic() - self.since < OPEN_S:
            return False
        self.since = time.monotonic()
        return True

    def tell(self, *, well: bool) -> None:
        """How it went."""
        self.failed = 0 if well else self.failed + 1
        if self.failed == FAILURES:
            self.since = time.monotonic()


class Upstream:
    """A connection pool to one predictor. `host`: HOST:PORT. Must be made on the event loop that uses it.

    `usable`: of path, answer and number of patients, whether the answer can be passed on; one that can't counts as none.
    """

    def __init__(self, host: str, usable: Callable[[str, bytes, int], bool] | None = None) -> None:
        import aiohttp

        self._aiohttp, self._usable = aiohttp, usable
        self._base = host if "://" in host else f"http://{host}"
        self.breaker = Breaker()
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=30)  # shorter than the predictor keeps an idle connection
        self._session = aiohttp.ClientSession(connector=connector, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar())

    async def ask(self, path: str, body: bytes, request_id: str, whom: Sequence[str] = ()) -> bytes:
        """The predictor's answer about `whom` (pseudonyms). Raises Unavailable; 429 and 503 are passed on with their own status."""
        if not self.breaker.closed():
            raise _down(int(OPEN_S))
        try:
            async with asyncio.timeout(TIMEOUT_S):
                status, told, after = await self._retried(path, body, request_id)
        except (self._aiohttp.ClientError, TimeoutError, OSError, ValueError):
            self.breaker.tell(well=False)
            raise _down() from None
        fits = status != 200 or self._usable is None or self._usable(path, told, len(whom))
        self.breaker.tell(well=fits and (status < 500 or status == 503))
        if status == 200 and fits:
            return told
        if status in (429, 503):
            raise Unavailable("OVERLOADED", "The predictor has too much to do. Ask again.", status=status, retry_after=after)
        raise _down()

    async def ready(self) -> bool:
        """Whether the predictor says that it is ready."""
        try:
            timeout = self._aiohttp.ClientTimeout(total=0.8)
            async with self._session.get(f"{self._base}/v2/health/ready", timeout=timeout, allow_redirects=False) as reply:
                return reply.status == 200
        except (self._aiohttp.ClientError, TimeoutError, OSError):
            return False

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def _retried(self, path: str, body: bytes, request_id: str) -> tuple[int, bytes, int]:
        """A connection that could not be made, or that the predictor had closed before it was used again, is tried once more."""
        try:
            return await self._sent(path, body, request_id)
        except (self._aiohttp.ClientConnectionError, ConnectionError):
            return await self._sent(path, body, request_id)

    async def _sent(self, path: str, body: bytes, request_id: str) -> tuple[int, bytes, int]:
        headers = {"content-type": "application/json", "x-request-id": request_id}
        given: dict[str, Any] = {"data": body, "headers": headers, "allow_redirects": False}
        async with self._session.post(self._base + path, **given) as reply:
            told = await reply.content.read(LARGEST_ANSWER + 1) if reply.content_length is None else await reply.read()
            if len(told) > LARGEST_ANSWER:
                raise ValueError("an answer longer than any")
            after = reply.headers.get("retry-after", "1")
            return reply.status, told, int(after) if after.isascii() and after.isdigit() and len(after) < 4 else 1


def _down(retry_after: int = 1) -> Unavailable:
    return Unavailable("MODEL_UNAVAILABLE", "The predictor gives no answer. Ask again.", retry_after=retry_after)
