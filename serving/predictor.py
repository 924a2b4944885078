"""KServe predictor: feature rows in, recommendations out, from one verified bundle that can be replaced while it serves."""

import asyncio
import logging
import math
import os
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import kserve
import numpy as np
import orjson
from kserve.model import InferenceVerb

from components.artifact import BundleError, bundle_in, manifest_sha256
from components.bundle import Bundle, load
from components.record import RecordError
from features.errors import ConcordantError
from features.feature import Floats
from features.moment import instant
from serving import body as bodies
from serving.monitor import Metrics
from serving.pool import Pool
from serving.protocol import v2_answer, v2_texts
from serving.schema import BadRequest, FeatureRow, Response, instances, response

_log = logging.getLogger("concordant.model")


class Predictor(kserve.Model):  # type: ignore[misc]  # kserve has no types
    """Answers from one bundle. A request keeps the bundle that it began with, whatever is swapped in meanwhile."""

    def __init__(self, name: str, folder: Path, *, metrics: Metrics | None = None, threads: int = 1) -> None:
        super().__init__(name)
        self._folder, self.metrics = folder, metrics or Metrics()
        self.bundle: Bundle | None = None
        self._seen: tuple[int, ...] = ()
        self._swapping = threading.Lock()
        self._pool = Pool("compute", threads=threads, waiting=64)

    def load(self) -> bool:
        """Verify and load the bundle. Raises BundleError."""
        self._seen = _mark(self._folder)
        self.bundle = _pinned(self._folder)
        self.ready = True
        return True

    async def healthy(self) -> bool:
        """KServe's data plane asks this before every request: readiness is not decided here."""
        return True

    def swap(self, folder: Path) -> bool:
        """Load another bundle beside the one that serves, and serve it if it is whole, of this decision, and passes its self-test.

        Otherwise the old one goes on. One reference is replaced: no answer is made of two bundles.
        """
        with self._swapping:
            old = self.bundle
            try:
                new = _pinned(folder)
                if old is not None and new.decision.name != old.decision.name:
                    raise ConcordantError(f"The bundle decides {new.decision.name}, this endpoint {old.decision.name}.")
            except Exception as error:
                told = str(error) if isinstance(error, ConcordantError) else type(error).__name__
                _log.error("bundle refused, the old one goes on: %s", told, extra={"model": old.version if old else None})
                self.metrics.swaps.labels("refused").inc()
                return False
            self.bundle, self.ready = new, True
            self.metrics.swaps.labels("served").inc()
            _log.info("bundle swapped", extra={"model": new.version})
            return True

    async def watch(self, every_s: float) -> None:
        """Swap whenever another bundle lies at the folder, until cancelled."""
        while True:
            await asyncio.sleep(every_s)
            found = await asyncio.to_thread(_mark, self._folder)
            if found and found != self._seen:
                self._seen = found
                await asyncio.to_thread(self.swap, self._folder)

    async def bundle_ready(self) -> str | None:
        """Whether there is a verified bundle whose safety rules have not expired."""
        bundle = self.bundle
        if bundle is None:
            return "no verified bundle"
        return "safety rules have expired" if bundle.rules.expired(datetime.now(UTC).date()) else None

    async def __call__(self, body: Any, headers: Mapping[str, str] | None = None, verb: Any = InferenceVerb.PREDICT) -> Any:
        """One request of KServe's data plane: v1 as parsed JSON, v2 as InferRequest with rows as JSON texts."""
        request_id = (headers or {}).get("x-request-id", "")
        if isinstance(body, kserve.InferRequest):
            given = {"instances": [bodies.parse(text.encode()) for text in v2_texts(body, "row")]}
            answers = await self._pool.run(self._answer, instances(given, FeatureRow), request_id)
            return v2_answer(self.name, body, answers), {}
        rows = instances(body, FeatureRow)
        if verb == InferenceVerb.EXPLAIN:
            return await self._pool.run(self._explain, rows, request_id), {}
        return await self._pool.run(self._told, rows, request_id), {}

    def _told(self, rows: list[FeatureRow], request_id: str) -> bytes:
        answers = self._answer(rows, request_id)
        return b'{"predictions":[' + b",".join(answer.model_dump_json().encode() for answer in answers) + b"]}"

    def _answer(self, rows: list[FeatureRow], request_id: str) -> list[Response]:
        bundle = self.bundle
        assert bundle is not None
        x_NF = _matrix(bundle, rows)
        stale, implausible, outside, records = ([getattr(r, name) for r in rows] for name in ("stale", "implausible", "outside", "record"))
        now_N, weights = np.array([_time_us(row.as_of) for row in rows]), [row.preferences for row in rows]
        try:
            _, answers = bundle.answer(x_NF, stale, outside, records, now_N, implausible, weights=weights, explained=True)
        except RecordError as error:
            raise BadRequest(str(error)) from None
        told = [response(bundle, answer, row, request_id) for answer, row in zip(answers, rows, strict=True)]
        self.metrics.modelled(told)
        return told

    def _explain(self, rows: list[FeatureRow], request_id: str) -> bytes:
        from serving.explainer import explain

        bundle = self.bundle
        assert bundle is not None
        told = explain(bundle, _matrix(bundle, rows), [row.as_of for row in rows], request_id)
        return orjson.dumps({"explanations": [entry.model_dump(mode="json") for entry in told]})


def _pinned(folder: Path) -> Bundle:
    """The bundle, where its digest is the one that this endpoint was deployed for; any, where none is set. Raises BundleError."""
    bundle, pin = load(folder), os.environ.get("CONCORDANT_BUNDLE_DIGEST", "")
    place = bundle_in(folder)
    if pin and manifest_sha256(place) != pin:
        raise BundleError(
            f"The bundle here is {manifest_sha256(place)}, this endpoint was deployed for {pin}. Put that bundle in its place."
        )
    return bundle


def _matrix(bundle: Bundle, rows: list[FeatureRow]) -> Floats:
    """Values in the order of the decision. Raises BadRequest where a row has other features."""
    names = [feature.name for feature in bundle.decision.columns]
    whole = set(names)
    for row in rows:
        if row.features.keys() != whole:
            raise BadRequest(f"features: this model needs its {len(names)} features by name, null where not known, and no others.")
    return np.array([[math.nan if (value := row.features[name]) is None else value for name in names] for row in rows])


def _mark(folder: Path) -> tuple[int, ...]:
    """What changes when another bundle is put in place, also by a symbolic link; empty while there is none."""
    place = bundle_in(folder)
    try:
        found = (place / "manifest.json").stat()
    except OSError:
        return ()
    return (found.st_ino, found.st_mtime_ns, found.st_size)


def _time_us(text: str) -> int:
    try:
        return instant(text)
    except (ValueError, OverflowError):
        raise BadRequest("as_of: a date or a time with zone, as FHIR writes it.") from None
