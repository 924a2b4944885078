"""KServe predictor: feature rows in, recommendations out. v1 (`instances`) and v2 (one BYTES input `row` of JSON feature rows)."""

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import kserve
import numpy as np
import orjson
from kserve.errors import InvalidInput

from components.bundle import Bundle, load
from components.record import facts as facts_of
from features.moment import instant
from serving.schema import BadRequest, FeatureRow, Response, instances, response
from serving.server import v2_answer, v2_texts


class Predictor(kserve.Model):  # type: ignore[misc]  # kserve has no types
    """Answers from one verified bundle."""

    def __init__(self, name: str, folder: Path) -> None:
        super().__init__(name)
        self._folder = folder
        self.bundle: Bundle | None = None

    def load(self) -> bool:
        """Verify and load the bundle; not ready without it."""
        self.bundle = load(self._folder)
        self.ready = True
        return True

    async def predict(self, payload: Any, headers: dict[str, str] | None = None) -> Any:
        """Recommendations of feature rows. Computed off the event loop."""
        v2 = isinstance(payload, kserve.InferRequest)
        try:
            body = {"instances": [orjson.loads(text) for text in v2_texts(payload, "row")]} if v2 else payload
            rows = instances(body, FeatureRow)
            answers = await asyncio.get_running_loop().run_in_executor(None, self._answer, rows)
        except (BadRequest, orjson.JSONDecodeError) as error:
            raise InvalidInput(str(error) if isinstance(error, BadRequest) else "row: not JSON.") from None
        return v2_answer(self.name, payload, answers) if v2 else {"predictions": [answer.model_dump(mode="json") for answer in answers]}

    def _answer(self, rows: list[FeatureRow]) -> list[Response]:
        bundle = self.bundle
        assert bundle is not None
        names = [feature.name for feature in bundle.decision.columns]
        for row in rows:
            if set(row.features) != set(names):
                raise BadRequest(f"features: this model needs its {len(names)} features by name, null where not known, and no others.")
        _check_records(rows)
        x_NF = np.array([[_number(row.features[name]) for name in names] for row in rows])
        stale, outside, records = ([getattr(row, name) for row in rows] for name in ("stale", "outside", "record"))
        _, answers = bundle.answer(x_NF, stale, outside, records, np.array([_time_us(row.as_of) for row in rows]))
        return [response(bundle, answer, row) for answer, row in zip(answers, rows, strict=True)]


def _check_records(rows: list[FeatureRow]) -> None:
    for row in rows:
        try:
            told = json.loads(row.record) if row.record else {}
            complete = not row.record or {"measured", "conditions", "drugs", "diplotypes", "variants"} <= set(told)
            if row.record and complete:
                facts = facts_of(told, 0)
                complete = all(isinstance(value.value, int | float) for value in facts.measurements.values())
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
            complete = False
        if not complete:
            raise BadRequest("record: a snapshot as the transformer writes it, or nothing.")


def _time_us(text: str) -> int:
    try:
        return instant(text)
    except ValueError:
        raise BadRequest("as_of: a date or a time with zone, as FHIR writes it.") from None


def _number(value: float | None) -> float:
    return math.nan if value is None else value
