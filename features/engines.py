"""Engines that run one function on many shards: processes of this machine, or a Ray cluster. The results do not depend on which.

The third, Kubeflow Pipelines, runs the same functions as tasks of its graph: see `pipelines/treatment.py`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

from features.errors import ConcordantError

Engine = Literal["processes", "ray"]
Map = Callable[[Callable[..., Any], Sequence[tuple[Any, ...]]], list[Any]]  # function, its arguments for each shard -> its results
ENGINES = get_args(Engine)


@contextmanager
def opened(engine: str, shards: int) -> Iterator[Map]:
    """An engine for as long as it is used. Raises ConcordantError where there is none of that name, or it can't be reached."""
    if engine not in ENGINES:
        raise ConcordantError(f"There is no engine {engine!r}. Give one of: {', '.join(ENGINES)}.")
    from concurrent.futures.process import BrokenProcessPool

    try:
        with _ray() if engine == "ray" else _processes(shards) as run:
            yield run
    except BrokenProcessPool:
        raise ConcordantError(
            "A shard's process was killed, as happens where memory runs out. Give it more memory, or fewer shards."
        ) from None


@contextmanager
def _processes(shards: int) -> Iterator[Map]:
    import os
    import sys
    import threading
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    if shards == 1:
        yield lambda function, arguments: [function(*one) for one in arguments]
        return
    # A forked process has everything imported already (a second of CPU each); but it may inherit a lock that another thread held.
    begun = "fork" if sys.platform == "linux" and threading.active_count() == 1 else "spawn"
    with ProcessPoolExecutor(min(shards, os.cpu_count() or 1), get_context(begun)) as pool:

        def run(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
            return [waiting.result() for waiting in [pool.submit(function, *one) for one in arguments]]

        yield run


@contextmanager
def _ray() -> Iterator[Map]:
    """The cluster at RAY_ADDRESS, else one of this machine for as long as it is used."""
    try:
        import ray
    except ImportError:
        raise ConcordantError("The engine ray needs the package ray: pip install 'concordant[ray]'.") from None
    began = not ray.is_initialized()
    if began:
        try:
            ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConcordantError(f"The Ray cluster can't be reached: {type(error).__name__}. Check RAY_ADDRESS.") from None

    def run(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        task = ray.remote(function)
        try:
            return list(ray.get([task.remote(*one) for one in arguments]))
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, ConcordantError):
                raise error.cause from None
            raise
        except ray.exceptions.RayError as error:  # a worker was killed, a node lost, memory ran out
            raise ConcordantError(
                f"A shard was lost on the Ray cluster: {type(error).__name__}. Run it again, or give it more memory."
            ) from None

    try:
        yield run
    finally:
        if began:
            ray.shutdown()
