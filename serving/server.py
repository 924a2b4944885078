"""KServe's model server as we run it: on loopback unless told otherwise, with errors that never carry input."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import kserve
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from kserve import PredictorConfig
from kserve.errors import InferenceError, InvalidInput
from kserve.model_server import app
from kserve.protocol.rest.server import RESTServer

from serving.schema import BadRequest, Response

QUIET = ("kserve", "kserve.trace", "uvicorn.access", "httpx", "feast")


class NotFound(Exception):
    """Nothing is known under that id."""


def serve(models: Sequence[kserve.Model], *, host: str, port: int, predictor_host: str | None = None) -> None:
    """Serve models over HTTP until a signal ends it. KServe itself binds every address and offers no choice; we bind `host`."""
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    config = PredictorConfig(
        predictor_host=predictor_host,
        predictor_protocol="v1",
        predictor_use_ssl=False,
        predictor_request_timeout_seconds=5,
        predictor_request_retries=1,
        predictor_health_check=predictor_host is not None,
    )
    server = kserve.ModelServer(http_port=port, enable_grpc=False, predictor_config=config)
    server._register_and_check_atleast_one_model_is_ready(list(models))
    rest = RESTServer("kserve.model_server:app", server.dataplane, server.model_repository_extension, port)
    rest.config.host, rest.config.access_log = host, False
    rest.create_application()
    handlers = {InvalidInput: _bad_request, RequestValidationError: _malformed, NotFound: _not_found, InferenceError: _unavailable}
    for kind, handler in (handlers | {Exception: _unavailable}).items():
        app.add_exception_handler(kind, handler)
    asyncio.run(rest._server.serve())


async def _bad_request(request: Request, error: InvalidInput) -> JSONResponse:
    del request
    reason = str(getattr(error, "reason", error))
    return _problem(400, reason if reason.isprintable() and len(reason) < 300 else "The request can't be read.")


async def _malformed(request: Request, error: RequestValidationError) -> JSONResponse:
    """FastAPI's own answer to a v2 body of the wrong form repeats the whole body, so it is never given."""
    del request, error
    return _problem(400, "The body is not an Open Inference Protocol request: see the README for its form.")


async def _not_found(request: Request, error: NotFound) -> JSONResponse:
    del request
    return _problem(404, str(error))


async def _unavailable(request: Request, error: Exception) -> JSONResponse:
    del request
    request_id = uuid4().hex
    logging.getLogger("concordant").error("request %s failed: %s", request_id, type(error).__name__)
    return _problem(503, f"No answer can be given now. Request {request_id}.")


def _problem(status: int, detail: str) -> JSONResponse:
    """RFC 9457 problem details."""
    return JSONResponse({"title": "error", "status": status, "detail": detail}, status_code=status, media_type="application/problem+json")


def v2_texts(request: Any, name: str) -> list[str]:
    """Strings of the one BYTES input of an Open Inference Protocol request. Raises BadRequest."""
    if len(request.inputs) != 1 or request.inputs[0].name != name or request.inputs[0].datatype != "BYTES":
        raise BadRequest(f"A v2 request needs exactly one input, {name!r}, of datatype BYTES.")
    data = request.inputs[0].data or []
    try:
        return [entry.decode() if isinstance(entry, bytes) else str(entry) for entry in data]
    except UnicodeDecodeError:
        raise BadRequest(f"{name}: not UTF-8.") from None


def v2_answer(model: str, request: Any, answers: Sequence[Response]) -> Any:
    """Open Inference Protocol response: `recommended` and the whole `response` as JSON, a string each."""
    shape = [len(answers)]
    outputs = [
        kserve.InferOutput(name="recommended", shape=shape, datatype="BYTES", data=[answer.recommended or "" for answer in answers]),
        kserve.InferOutput(name="response", shape=shape, datatype="BYTES", data=[answer.model_dump_json() for answer in answers]),
    ]
    return kserve.InferResponse(response_id=request.id or uuid4().hex, model_name=model, infer_outputs=outputs)
