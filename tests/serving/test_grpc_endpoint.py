"""gRPC: the answers of the HTTP routes, and no way to what they do not offer."""

import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from conftest import CANARY, WholeRun
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as stubs
from served import ask

from pipelines.port import free_port
from pipelines.serve import Endpoints

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("whole")]


@contextmanager
def transformer(run: WholeRun, endpoints: Endpoints) -> Iterator[Any]:
    """A transformer of its own with a gRPC port, before the predictor that is there; yields a stub."""
    port, wire = free_port(), free_port()
    given = ["--store", str(run.folder / "store"), "--key-file", str(run.workspace / "pseudonym.key"), "--drain-wait", "0"]
    given += ["--predictor", f"127.0.0.1:{endpoints._predictor_port}", "--port", str(port), "--grpc-port", str(wire)]
    process = subprocess.Popen([sys.executable, "-m", "serving", "transformer", "--name", endpoints.name, *given])
    channel = grpc.insecure_channel(f"127.0.0.1:{wire}")
    try:
        grpc.channel_ready_future(channel).result(90)
        yield stubs.GRPCInferenceServiceStub(channel)
    finally:
        channel.close()
        process.terminate()
        assert process.wait(30) == 0


def request(endpoints: Endpoints, ids: list[str], **changed: Any) -> Any:
    contents = pb.InferTensorContents(bytes_contents=[text.encode() for text in ids])
    told: dict[str, Any] = {"name": "patient_id", "datatype": "BYTES", "shape": [len(ids)], "contents": contents} | changed
    return pb.ModelInferRequest(model_name=endpoints.name, inputs=[pb.ModelInferRequest.InferInputTensor(**told)])


def failed(call: Any, asked: Any, **metadata: str) -> tuple[str, str]:
    """Code and words of an error."""
    with pytest.raises(grpc.RpcError) as error:
        call(asked, timeout=20, metadata=tuple(metadata.items()))
    assert CANARY not in str(error.value.trailing_metadata())
    return error.value.code().name, error.value.details()


def test_grpc_answers_as_http_and_offers_nothing_else(whole_run: WholeRun, endpoints: Endpoints, patients: list[str]) -> None:
    with transformer(whole_run, endpoints) as stub:
        assert stub.ServerLive(pb.ServerLiveRequest()).live
        assert (
            stub.ModelReady(pb.ModelReadyRequest(name=endpoints.name)).ready and not stub.ModelReady(pb.ModelReadyRequest(name="x")).ready
        )
        assert stub.ModelMetadata(pb.ModelMetadataRequest(name=endpoints.name)).inputs[0].name == "patient_id"
        over_http = ask(endpoints.url, {"instances": [{"patient_id": patient} for patient in patients[:2]]}).body["predictions"]

        packed = b"".join(struct.pack("<I", len(text)) + text.encode() for text in patients[:2])
        raw = request(endpoints, patients[:2])
        raw.inputs[0].ClearField("contents")
        raw.raw_input_contents.append(packed)
        for asked in (request(endpoints, patients[:2]), raw):
            told = stub.ModelInfer(asked, timeout=20)
            outputs = {entry.name: list(entry.contents.bytes_contents) for entry in told.outputs}
            answers = [json.loads(text) for text in outputs["response"]]
            for answer, other in zip(answers, over_http, strict=True):
                assert {**answer, "request_id": ""} == {**other, "request_id": ""}

        assert failed(stub.ModelInfer, request(endpoints, [CANARY])) == ("NOT_FOUND", "Patient 1 of 1 is not in the feature store.")
        bent = [{"shape": [2]}, {"shape": [0]}, {"name": CANARY}, {"datatype": "FP32"}]
        asked_badly = [request(endpoints, ["a"], **changed) for changed in bent]
        asked_badly += [request(endpoints, []), request(endpoints, ["a"] * 257), pb.ModelInferRequest(model_name=endpoints.name)]
        cut = request(endpoints, ["a"])
        cut.inputs[0].ClearField("contents")
        cut.raw_input_contents.append(packed[:-1])
        wrong = request(endpoints, ["a"])
        wrong.inputs[0].contents.bytes_contents[0] = b"\xff" + CANARY.encode()
        for asked in [*asked_badly, cut, wrong]:
            code, text = failed(stub.ModelInfer, asked, authorization=CANARY)
            assert code == "INVALID_ARGUMENT" and CANARY not in text
        assert failed(stub.ModelInfer, request(endpoints, ["a" * 1_100_000]))[0] == "RESOURCE_EXHAUSTED"
        assert failed(stub.RepositoryModelUnload, pb.RepositoryModelUnloadRequest(model_name=endpoints.name))[0] == "UNIMPLEMENTED"
        assert failed(stub.RepositoryModelLoad, pb.RepositoryModelLoadRequest(model_name=endpoints.name))[0] == "UNIMPLEMENTED"
        assert stub.ServerReady(pb.ServerReadyRequest()).ready
