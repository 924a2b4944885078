"""A process ends where something that runs beside its HTTP server can't: half a server does not look well."""

import asyncio
import socket
import struct
import subprocess
import sys
from typing import Any

import grpc
import pytest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as stubs

from serving import grpc_endpoint
from serving.guard import Guard
from serving.readiness import Readiness

PROGRAM = """
import sys
from serving.grpc_endpoint import Endpoint, serve as serve_grpc
from serving.guard import Guard
from serving.readiness import Readiness
from serving.server import serve

guard, readiness = Guard([]), Readiness({})
endpoint = Endpoint("m", "row", None, guard, readiness)
beside = [lambda: serve_grpc(endpoint, 1_000_000, "127.0.0.1", int(sys.argv[1]))]
serve(guard, readiness, host="127.0.0.1", port=0, wait_s=0.0, beside=beside)
"""


@pytest.fixture
def taken() -> Any:
    """A port of this machine that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_a_grpc_server_that_gets_no_address_ends_the_process_with_an_error(taken: int) -> None:
    ended = subprocess.run([sys.executable, "-c", PROGRAM, str(taken)], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1 and "bind" in ended.stderr


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_an_ipv6_address_is_served() -> None:
    async def live() -> bool:
        with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
            port = listener.getsockname()[1]
        endpoint = grpc_endpoint.Endpoint("m", "row", None, Guard([]), Readiness({}))  # type: ignore[arg-type]  # no model is asked
        serving = asyncio.create_task(grpc_endpoint.serve(endpoint, 1_000_000, "::1", port))
        try:
            async with grpc.aio.insecure_channel(f"[::1]:{port}") as channel:
                told = await stubs.GRPCInferenceServiceStub(channel).ServerLive(pb.ServerLiveRequest(), timeout=10, wait_for_ready=True)
            return bool(told.live)
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)

    assert asyncio.run(live())


def test_no_more_strings_are_unpacked_than_show_that_there_are_too_many() -> None:
    assert grpc_endpoint._unpacked(struct.pack("<I", 2) + b"ab" + struct.pack("<I", 0)) == [b"ab", b""]
    assert len(grpc_endpoint._unpacked(struct.pack("<I", 0) * 250_000)) == grpc_endpoint.MOST_ASKED + 1
