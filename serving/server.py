"""The process: KServe's data plane, the guard in front of it, a server that is ready and stops honestly."""

import asyncio
import gc
import os
import signal
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

import kserve
import uvicorn
from kserve.model_repository import ModelRepository
from kserve.protocol.dataplane import DataPlane

from serving.connection import Connection, allow_many
from serving.guard import Guard, Limits, Route, State
from serving.monitor import Metrics, quiet_logs, trace
from serving.protocol import Protocol
from serving.readiness import Check, Readiness

DRAIN_S = 30  # at most, for requests that are being answered when the listener closes


class Server(uvicorn.Server):
    """Uvicorn that says "not ready" for a while before it closes its listener: whoever routes to it must hear of it first."""

    def __init__(self, config: uvicorn.Config, state: State, wait_s: float) -> None:
        super().__init__(config)
        self._state, self._wait_s = state, wait_s

    def stop(self) -> None:
        """First signal: unready, wait, drain. Second: at once."""
        if self._state.draining:
            self.should_exit = True
            return
        self._state.draining = True
        asyncio.get_running_loop().call_later(self._wait_s, setattr, self, "should_exit", True)


def application(
    model: kserve.Model,
    column: str,
    checks: Mapping[str, Check],
    *,
    limits: Limits | None = None,
    metrics: Metrics | None = None,
    explains: bool = True,
    more: Callable[[State], Sequence[Route]] | None = None,
) -> tuple[Guard, Readiness, DataPlane]:
    """The ASGI application of one model: KServe's protocols, and `more` routes, behind one guard."""
    repository = ModelRepository()
    repository.update(model)
    plane, state, readiness = DataPlane(repository), State(), Readiness(checks)
    routes = Protocol(model.name, column, plane, readiness, state, explains=explains).routes()
    routes += more(state) if more else []
    if metrics is not None:
        state.observed.append(metrics.request)
        metrics.ready.set_function(lambda: float(not readiness.wrong and not state.draining))
    return Guard(routes, limits=limits, state=state), readiness, plane


def settings(guard: Guard, host: str, port: int) -> uvicorn.Config:
    """Uvicorn as we run it."""
    return uvicorn.Config(
        guard,
        host=host,
        port=port,
        http=Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=65,
        timeout_graceful_shutdown=DRAIN_S,
        backlog=2048,
    )


def serve(
    guard: Guard,
    readiness: Readiness,
    *,
    host: str,
    port: int,
    wait_s: float,
    beside: Sequence[Callable[[], Coroutine[Any, Any, None]]] = (),
    after: Callable[[], Coroutine[Any, Any, None]] | None = None,
) -> None:
    """Serve until a signal ends it. `wait_s`: between "not ready" and the closing of the listener; `beside` runs along, `after` last.

    What fails beside ends the server, and is raised: a process that does half of its work does not look well.
    """
    quiet_logs()
    trace()
    allow_many()
    server = Server(settings(guard, host, port), guard.state, wait_s)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, server.stop)
        await readiness.look()
        gc.freeze()  # what was loaded stays: the collector need not look at it again in the middle of a request
        tasks = [asyncio.create_task(work()) for work in (readiness.watch, *beside)]
        for task in tasks:
            task.add_done_callback(lambda done: None if done.cancelled() or done.exception() is None else server.stop())
        try:
            await server._serve()  # without uvicorn's own signal handlers
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            if after is not None:
                await after()
        for error in ended:
            if isinstance(error, Exception):
                raise error

    with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        runner.run(main())
    os._exit(0) if guard.state.in_flight else None
