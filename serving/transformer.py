"""KServe transformer: patients in, their rows to the predictor, its recommendations out; every read is in the audit trail."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import kserve
from kserve.model import InferenceVerb
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from serving.audit import AuditError, Outcome, Reader, Trail
from serving.guard import NotFound, Refusal, Unavailable
from serving.inline import Inline
from serving.monitor import Metrics, span
from serving.patient import Patients, UnknownPatient
from serving.pool import Pool
from serving.protocol import v2_answer, v2_texts
from serving.schema import BadRequest, Explanation, FeatureRow, PatientQuery, Response, instances
from serving.upstream import Upstream

STORE_S = 0.8  # to read the stored rows of a request
INLINE_S = 0.8  # to make the rows of the records that it brings


class Answers(BaseModel):
    """What the predictor sends."""

    model_config = ConfigDict(frozen=True, strict=True, hide_input_in_errors=True)
    predictions: list[Response]


class Explanations(BaseModel):
    """What the predictor sends for `:explain`."""

    model_config = ConfigDict(frozen=True, strict=True, hide_input_in_errors=True)
    explanations: list[Explanation]


Told = TypeVar("Told", Answers, Explanations)
_ANSWERS, _EXPLANATIONS = TypeAdapter(Answers), TypeAdapter(Explanations)


def usable(path: str, raw: bytes, patients: int) -> bool:
    """Whether a predictor's answer can be passed on: well formed, one answer or explanation a patient."""
    try:
        if path.endswith(":explain"):
            _told(_EXPLANATIONS, raw, patients)
        else:
            _told(_ANSWERS, raw, patients)
    except Unavailable:
        return False
    return True


def _told(kind: TypeAdapter[Told], raw: bytes, patients: int) -> Told:
    """A predictor's answer, parsed. Raises Unavailable where it can't be passed on."""
    with suppress(ValidationError):
        told = kind.validate_json(raw)
        if len(told.predictions if isinstance(told, Answers) else told.explanations) == patients:
            return told
    raise Unavailable("MODEL_UNAVAILABLE", "The predictor's answer is not one that can be passed on.")


class Transformer(kserve.Model):  # type: ignore[misc]  # kserve has no types
    """Reads the feature store in process, or an inline Bundle, and asks the predictor."""

    def __init__(
        self,
        name: str,
        patients: Patients,
        inline: Inline | None,
        upstream: Callable[[], Upstream],
        *,
        trail: Trail | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        super().__init__(name)
        self._patients, self._inline, self._make_upstream, self._trail = patients, inline, upstream, trail
        self._upstream: Upstream | None = None
        self.metrics = metrics or Metrics()
        self._reading = Pool("store", threads=2, waiting=64)
        self._making = Pool("inline", threads=1, waiting=64)  # it computes: two would wait for each other, and use more time for it
        self._checking = Pool("canary", threads=1, waiting=1)

    @property
    def upstream(self) -> Upstream:
        """Connections to the predictor; made on the event loop that first asks."""
        if self._upstream is None:
            self._upstream = self._make_upstream()
        return self._upstream

    async def close(self) -> None:
        """Close the connections to the predictor."""
        if self._upstream is not None:
            await self._upstream.close()

    async def healthy(self) -> bool:
        """KServe's data plane asks this before every request: readiness is not decided here."""
        return True

    async def __call__(self, body: Any, headers: Mapping[str, str] | None = None, verb: Any = InferenceVerb.PREDICT) -> Any:
        """One request of KServe's data plane: v1 as parsed JSON, v2 as InferRequest."""
        told = headers or {}
        reader, request_id = Reader.of(told, told.get("peer", "")), told.get("x-request-id", "")
        if isinstance(body, kserve.InferRequest):
            queries = instances({"instances": [{"patient_id": text} for text in v2_texts(body, "patient_id")]}, PatientQuery)
            _, answers = await self.ask(queries, reader, request_id)
            return v2_answer(self.name, body, answers), {}
        queries = instances(body, PatientQuery)
        if verb == InferenceVerb.EXPLAIN:
            return await self.explain_all(queries, reader, request_id), {}
        raw, _ = await self.ask(queries, reader, request_id)
        return raw, {}

    async def ask(self, queries: Sequence[PatientQuery], reader: Reader, request_id: str) -> tuple[bytes, list[Response]]:
        """Answers for some patients, as the predictor wrote them and parsed, in the order asked. A read is audited also where it fails."""
        raw = await self._asked("predict", queries, reader, request_id)
        answers = _told(_ANSWERS, raw, len(queries)).predictions
        self.metrics.answered(answers)
        return raw, answers

    async def explain_all(self, queries: Sequence[PatientQuery], reader: Reader, request_id: str) -> bytes:
        """Contributions to the answers for some patients, as JSON."""
        raw = await self._asked("explain", queries, reader, request_id)
        _told(_EXPLANATIONS, raw, len(queries))
        return raw

    async def _asked(self, verb: str, queries: Sequence[PatientQuery], reader: Reader, request_id: str) -> bytes:
        whom, outcome = [self._patients.named(query) for query in queries], "8"
        try:
            with span(verb, request=request_id):
                with span("rows"):
                    whom, rows = await self._rows(queries)
                body = b'{"instances":[' + b",".join(row.model_dump_json().encode() for row in rows) + b"]}"
                with span("predictor"):
                    raw = await self.upstream.ask(f"/v1/models/{self.name}:{verb}", body, request_id, whom)
            outcome = "0"
            return raw
        except Refusal as error:
            outcome = "4" if error.status < 500 else "8"
            raise
        except BadRequest:
            outcome = "4"
            raise
        finally:
            self._audit(reader, whom, outcome, request_id)  # type: ignore[arg-type]

    def _audit(self, reader: Reader, whom: Sequence[str], outcome: Outcome, request_id: str) -> None:
        try:
            if self._trail is not None:
                self._trail.write(reader, whom, outcome, request_id)
        except AuditError:
            raise Unavailable("AUDIT_UNAVAILABLE", "The audit trail can't be written, so nothing is answered.") from None

    async def _rows(self, queries: Sequence[PatientQuery]) -> tuple[list[str], list[FeatureRow]]:
        """Pseudonym and row of each query: from its Bundle, or from the store. Off the event loop."""
        try:
            async with asyncio.timeout(STORE_S):
                stored = [query for query in queries if query.bundle is None]
                found = iter(await self._reading.run(self._stored, stored) if stored else ())
        except UnknownPatient as error:
            raise NotFound(str(error)) from None
        except TimeoutError:
            raise Unavailable("FEATURE_STORE_DOWN", "The feature store is too slow. Ask again.") from None
        try:
            async with asyncio.timeout(INLINE_S):  # one by one, so that others' records come between
                told = [
                    (self._patients.named(query), next(found)) if query.bundle is None else await self._making.run(self._brought, query)
                    for query in queries
                ]
        except TimeoutError:
            raise Unavailable("OVERLOADED", "The inline records take too long. Ask again, with fewer of them at once.") from None
        return [who for who, _ in told], [row for _, row in told]

    def _stored(self, queries: Sequence[PatientQuery]) -> Sequence[FeatureRow]:
        try:
            return self._patients.rows(queries)
        except UnknownPatient:
            raise
        except Exception:
            raise Unavailable("FEATURE_STORE_DOWN", "The feature store gives no row that can be trusted. Ask again.") from None

    def _brought(self, query: PatientQuery) -> tuple[str, FeatureRow]:
        if self._inline is None or query.bundle is None:
            raise BadRequest("bundle: inline records are not answered here, only patients of the feature store.")
        who, row = self._inline.row(query.bundle)
        return who, row.model_copy(update={"preferences": query.preferences})

    # -------------------------------------------------------------------------------------------------------------------- readiness

    async def store_ready(self) -> str | None:
        """Whether the store can be read and is fresh."""
        return await self._checking.run(self._patients.canary)

    async def predictor_ready(self) -> str | None:
        """Whether the predictor is ready."""
        return None if await self.upstream.ready() else "no answer, or not ready"

    async def audit_ready(self) -> str | None:
        """Whether the audit trail can be written."""
        return None if self._trail is None or self._trail.writable() else "the trail can't be written"
