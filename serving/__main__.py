"""`python -m serving predictor|transformer`: the two processes of an InferenceService, here and in the image. Also `audit`, `contract`."""

import argparse
import json
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from components.artifact import die_with_parent
from features.errors import ConcordantError


def main() -> None:
    """Parse the arguments and do what they say."""
    parser = argparse.ArgumentParser(prog="python -m serving", description="The processes of an InferenceService.")
    roles = parser.add_subparsers(dest="role", required=True)
    for role in ("predictor", "transformer"):
        _endpoint(roles.add_parser(role), role)
    audit = roles.add_parser("audit", help="check the chain of an audit trail")
    audit.add_argument("file", type=Path)
    roles.add_parser("contract", help="print the OpenAPI document")
    given = parser.parse_args()
    sys.argv[1:] = []  # kserve parses the command line when it is imported; it is not meant for it
    try:
        {"predictor": _predictor, "transformer": _transformer, "audit": _audit, "contract": _contract}[given.role](given)
    except ConcordantError as error:
        sys.exit(f"Error: {error}")


def _endpoint(parser: argparse.ArgumentParser, role: str) -> None:
    # KServe adds the second spellings to a transformer's container.
    parser.add_argument("--name", "--model_name", dest="name", required=True, help="model name in the URL")
    parser.add_argument("--port", "--http_port", dest="port", type=int, default=8080)
    parser.add_argument("--host", default="127.0.0.1", help="address to bind; an image binds 0.0.0.0")
    parser.add_argument("--metrics-port", type=int, help="serve Prometheus metrics there, apart from the answers")
    parser.add_argument("--metrics-host", default="127.0.0.1", help="address to bind for metrics")
    parser.add_argument("--drain-wait", type=float, default=10.0, help="seconds between 'not ready' and closing after SIGTERM")
    parser.add_argument("--grpc-port", type=int, help="serve the Open Inference Protocol over gRPC there, on the same address")
    if role == "predictor":
        parser.add_argument("--bundle", type=Path, required=True, help="bundle folder; another one put in its place is swapped in")
        parser.add_argument("--watch", type=float, default=2.0, help="seconds between looks for another bundle; 0 never looks")
        return
    parser.add_argument("--store", type=Path, required=True, help="feature store folder")
    parser.add_argument("--key-file", type=Path, required=True, help="pseudonym key")
    parser.add_argument("--decision", help="shipped name or YAML file of the decision; with it inline Bundles are answered too")
    parser.add_argument("--predictor", "--predictor_host", dest="predictor", required=True, help="HOST:PORT of the predictor")
    parser.add_argument("--canary", default="", help="HOST:PORT of a predictor on trial")
    parser.add_argument("--canary-percent", type=int, default=0, choices=range(101), metavar="0-100", help="its share; 0 makes it a shadow")
    parser.add_argument("--audit", type=Path, help="file of the audit trail; without it nothing is audited")
    parser.add_argument("--site", default="concordant", help="name of this site in audit events")
    parser.add_argument("--page", action="store_true", help="serve the clinician's page under /page/")
    parser.add_argument("--hooks", action="store_true", help="serve CDS Hooks 2.0 under /cds-services")
    parser.add_argument("--ehr", type=Path, help="YAML of the EHRs that may call CDS Hooks; needed on an address that others reach")
    parser.add_argument("--feedback", type=Path, default=Path("feedback.sqlite"), help="file that keeps feedback on CDS Hooks cards")
    parser.add_argument("--wall-clock", action="store_true", help="age values by the clock, not by the newest date of the store")


def _predictor(given: argparse.Namespace) -> None:
    die_with_parent()
    from serving.monitor import Metrics
    from serving.predictor import Predictor
    from serving.server import application, serve

    metrics = Metrics()
    predictor = Predictor(given.name, given.bundle, metrics=metrics)
    predictor.load()
    guard, readiness, plane = application(predictor, "row", {"bundle": predictor.bundle_ready}, metrics=metrics)
    if given.metrics_port:
        metrics.serve(given.metrics_host, given.metrics_port)
    beside = [lambda: predictor.watch(given.watch)] if given.watch else []
    beside += _grpc(given, "row", guard, readiness, plane)
    serve(guard, readiness, host=given.host, port=given.port, wait_s=given.drain_wait, beside=beside)


def _grpc(given: argparse.Namespace, column: str, guard: Any, readiness: Any, plane: Any) -> list[Callable[[], Coroutine[Any, Any, None]]]:
    """The gRPC server as something that runs beside, where it is asked for."""
    if not given.grpc_port:
        return []
    from serving.grpc_endpoint import Endpoint, serve

    endpoint = Endpoint(given.name, column, plane, guard, readiness)
    return [lambda: serve(endpoint, guard.limits.body_bytes, given.host, given.grpc_port)]


def _transformer(given: argparse.Namespace) -> None:
    die_with_parent()
    from components.decision import load
    from features.events import PseudonymKey
    from serving.audit import Trail
    from serving.inline import Inline
    from serving.monitor import Metrics
    from serving.mounted import mounted
    from serving.patient import Patients
    from serving.server import application, serve
    from serving.split import Split
    from serving.transformer import Transformer
    from serving.upstream import Upstream

    key, metrics = PseudonymKey.at(given.key_file), Metrics()
    patients = Patients(given.store, key, wall_clock=given.wall_clock)
    inline = Inline(load(given.decision), key, wall_clock=given.wall_clock) if given.decision else None
    trail = Trail(given.audit, given.site) if given.audit else None

    def upstream() -> Upstream:
        return Split(given.predictor, given.canary, given.canary_percent, metrics) if given.canary else Upstream(given.predictor)

    transformer = Transformer(given.name, patients, inline, upstream, trail=trail, metrics=metrics)
    checks = {"store": transformer.store_ready, "predictor": transformer.predictor_ready, "audit": transformer.audit_ready}
    more = mounted(transformer, given)
    guard, readiness, plane = application(transformer, "patient_id", checks, metrics=metrics, more=lambda _: more)
    if given.metrics_port:
        metrics.serve(given.metrics_host, given.metrics_port)
    patients.canary()  # opens the store, which takes seconds, before anybody waits
    beside = _grpc(given, "patient_id", guard, readiness, plane)
    serve(guard, readiness, host=given.host, port=given.port, wait_s=given.drain_wait, beside=beside, after=transformer.close)


def _audit(given: argparse.Namespace) -> None:
    from serving.audit import AuditError, verify

    if not given.file.is_file():
        raise AuditError(f"There is no audit trail at {given.file}.")
    found = verify(given.file)
    print(f"{found.events:,} events, the chain holds; head {found.head}")  # noqa: T201  the command's answer


def _contract(given: argparse.Namespace) -> None:
    del given
    from serving.contract import document

    print(json.dumps(document(), indent=1))  # noqa: T201  the command's answer


if __name__ == "__main__":
    main()
