"""The Open Inference Protocol over gRPC, for one model, with the limits of the guard: what can be asked, never load or unload.

KServe's servicer offers both to anybody, binds every address and sends texts of exceptions back; of KServe this takes the published
protocol (its generated stubs) and the data plane that the HTTP routes ask too.
"""

import struct
import time
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import grpc  # type: ignore[import-untyped]
import kserve
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as stubs

from serving.guard import REQUEST_ID, Guard, NotFound, Refusal, fault
from serving.pool import Overloaded
from serving.readiness import Readiness
from serving.schema import BadRequest

CARRIED = ("x-forwarded-user", "x-forwarded-client", "x-purpose-of-use")
CODES = {400: grpc.StatusCode.INVALID_ARGUMENT, 404: grpc.StatusCode.NOT_FOUND, 503: grpc.StatusCode.UNAVAILABLE}
MOST_ASKED = 256
STOP_S = 5.0


class Endpoint(stubs.GRPCInferenceServiceServicer):  # type: ignore[misc]  # generated code has no types
    """ServerLive, ServerReady, ServerMetadata, ModelReady, ModelMetadata and ModelInfer; all else answers UNIMPLEMENTED."""

    def __init__(self, name: str, column: str, plane: DataPlane, guard: Guard, readiness: Readiness) -> None:
        self._name, self._column, self._plane, self._guard, self._readiness = name, column, plane, guard, readiness

    def _ready(self) -> bool:
        return not self._guard.state.draining and not self._readiness.wrong

    async def ServerLive(self, request: Any, context: Any) -> Any:  # noqa: N802  the protocol's own name, as all below
        """Alive."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        """As `/v2/health/ready`."""
        return pb.ServerReadyResponse(ready=self._ready())

    async def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Of the one model that is served."""
        return pb.ModelReadyResponse(ready=request.name == self._name and self._ready())

    async def ServerMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Name, and KServe's version."""
        return pb.ServerMetadataResponse(name="concordant", version=self._plane.metadata()["version"])

    async def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Inputs and outputs, as `/v2/models/NAME`."""
        if request.name != self._name:
            await context.abort(grpc.StatusCode.NOT_FOUND, "There is no such model.")
        tensor = pb.ModelMetadataResponse.TensorMetadata
        outputs = [tensor(name=name, datatype="BYTES", shape=[-1]) for name in ("recommended", "response")]
        inputs = [tensor(name=self._column, datatype="BYTES", shape=[-1])]
        return pb.ModelMetadataResponse(name=self._name, platform="concordant", inputs=inputs, outputs=outputs)

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        """As `/v2/models/NAME/infer`; errors have a code and words of ours, and the request id as trailing metadata."""
        told = {str(name): str(value) for name, value in context.invocation_metadata() or () if isinstance(value, str)}
        given = told.get("x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else uuid4().hex
        context.set_trailing_metadata((("x-request-id", request_id),))
        headers = {name: told[name] for name in CARRIED if name in told} | {"x-request-id": request_id, "peer": _host(context.peer())}
        began, status = time.perf_counter(), 500
        try:
            answer = await self._infer(request, headers)
            status = 200
            return answer
        except BadRequest as error:
            status, code, text = 400, grpc.StatusCode.INVALID_ARGUMENT, str(error)
        except Overloaded:
            status, code, text = 503, grpc.StatusCode.UNAVAILABLE, "Too much to do. Ask again."
        except Refusal as refusal:
            text = f"{refusal.code}: {refusal.detail}" if refusal.code else refusal.detail
            status, code = refusal.status, CODES.get(refusal.status, grpc.StatusCode.UNAVAILABLE)
        except Exception as error:  # a fault of ours: its text may quote a record
            fault(error, request_id)
            code, text = grpc.StatusCode.INTERNAL, "This is a fault of ours. It was logged under the request id."
        finally:
            for observe in self._guard.state.observed:
                observe("grpc_infer", status, time.perf_counter() - began)
        await context.abort(code, text)

    async def _infer(self, request: Any, headers: Mapping[str, str]) -> Any:
        if request.model_name != self._name or request.model_version:
            raise NotFound("There is no such model.")
        texts = _texts(request, self._column)
        given = kserve.InferInput(name=self._column, shape=[len(texts)], datatype="BYTES", data=texts)
        asked = kserve.InferRequest(model_name=self._name, infer_inputs=[given], request_id=headers["x-request-id"])
        async with self._guard.at_work():
            answer, _ = await self._plane.infer(self._name, asked, dict(headers))
        return answer.to_grpc()


def _texts(request: Any, column: str) -> list[str]:
    """The strings of the one input, from its contents or from raw contents. Raises BadRequest."""
    if len(request.inputs) != 1 or request.inputs[0].name != column or request.inputs[0].datatype != "BYTES":
        raise BadRequest(f"A request needs exactly one input, {column!r}, of datatype BYTES.")
    tensor, raw = request.inputs[0], list(request.raw_input_contents)
    if raw and (len(raw) != 1 or tensor.HasField("contents")):
        raise BadRequest(f"{column}: contents, or raw contents once.")
    found = _unpacked(raw[0]) if raw else list(tensor.contents.bytes_contents)
    if list(tensor.shape) != [len(found)] or not 0 < len(found) <= MOST_ASKED:
        raise BadRequest(f"{column}: the shape must be the number of strings, 1 to {MOST_ASKED}.")
    try:
        return [part.decode() for part in found]
    except UnicodeDecodeError:
        raise BadRequest(f"{column}: not UTF-8 strings.") from None


def _unpacked(raw: bytes) -> list[bytes]:
    """Strings with their lengths in front, four bytes each, little end first, as the protocol packs them. Raises BadRequest."""
    found: list[bytes] = []
    at = 0
    while at < len(raw) and len(found) <= MOST_ASKED:  # one too many is refused, however many more there are
        end = at + 4 + (struct.unpack_from("<I", raw, at)[0] if at + 4 <= len(raw) else len(raw))
        if end > len(raw):
            raise BadRequest("raw contents: strings with their lengths in front.")
        found.append(raw[at + 4 : end])
        at = end
    return found


def _host(peer: str) -> str:
    """`127.0.0.1` of `ipv4:127.0.0.1:50051`."""
    return peer.partition(":")[2].rpartition(":")[0]


async def serve(endpoint: Endpoint, limits_bytes: int, host: str, port: int) -> None:
    """On one address until cancelled; what is being answered then is finished. Raises RuntimeError where the address can't be had."""
    options = [
        ("grpc.max_receive_message_length", limits_bytes),
        ("grpc.max_metadata_size", 16_384),
        ("grpc.max_concurrent_streams", 128),
        ("grpc.max_connection_idle_ms", 65_000),
        ("grpc.so_reuseport", 0),
    ]
    server = grpc.aio.server(options=options)
    stubs.add_GRPCInferenceServiceServicer_to_server(endpoint, server)
    server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    await server.start()
    try:
        await server.wait_for_termination()
    finally:
        await server.stop(STOP_S)
