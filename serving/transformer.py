"""KServe transformer: patient ids in, the store's rows to the predictor, its recommendations out. v1 and v2 (BYTES input `patient_id`)."""

import asyncio
from typing import Any

import kserve
import orjson
from kserve.errors import InvalidInput

from serving.patient import Patients
from serving.schema import BadRequest, FeatureRow, PatientQuery, Response, instances
from serving.server import NotFound, v2_answer, v2_texts


class Transformer(kserve.Model):  # type: ignore[misc]  # kserve has no types
    """Reads the feature store in process and asks the predictor over v1."""

    def __init__(self, name: str, patients: Patients) -> None:
        super().__init__(name)
        self._patients = patients

    async def __call__(self, body: Any, headers: dict[str, str] | None = None, verb: Any = None) -> Any:
        """One request: the answer's form follows the request's protocol, whichever one the predictor is asked by."""
        v2 = isinstance(body, kserve.InferRequest)
        queries = self._queries(body, v2)
        rows = await asyncio.get_running_loop().run_in_executor(None, self._read, queries)
        told = await self._http_predict({"instances": [row.model_dump(mode="json") for row in rows]}, {})
        answers = [Response.model_validate_json(orjson.dumps(entry)) for entry in told["predictions"]]
        return (v2_answer(self.name, body, answers) if v2 else {"predictions": [a.model_dump(mode="json") for a in answers]}), {}

    def _queries(self, body: Any, v2: bool) -> list[PatientQuery]:
        try:
            found = {"instances": [{"patient_id": text} for text in v2_texts(body, "patient_id")]} if v2 else body
            return instances(found, PatientQuery)
        except BadRequest as error:
            raise InvalidInput(str(error)) from None

    def _read(self, queries: list[PatientQuery]) -> list[FeatureRow]:
        try:
            return self._patients.rows(queries)
        except LookupError as error:
            raise NotFound(str(error)) from None
