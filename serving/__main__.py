"""`python -m serving predictor|transformer`: the two processes of an InferenceService, here and in the image."""

import argparse
import sys
from pathlib import Path

from components.artifact import die_with_parent
from features.errors import ConcordantError


def main() -> None:
    """Parse the arguments and serve."""
    parser = argparse.ArgumentParser(prog="python -m serving", description="One process of an InferenceService.")
    parser.add_argument("role", choices=["predictor", "transformer"])
    parser.add_argument("--name", required=True, help="model name in the URL")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--host", default="127.0.0.1", help="address to bind; an image binds 0.0.0.0")
    parser.add_argument("--bundle", type=Path, help="bundle folder (predictor)")
    parser.add_argument("--store", type=Path, help="feature store folder (transformer)")
    parser.add_argument("--key-file", type=Path, help="pseudonym key (transformer)")
    parser.add_argument("--predictor", help="HOST:PORT of the predictor (transformer)")
    parser.add_argument("--wall-clock", action="store_true", help="age values by the clock, not by the newest date of the store")
    given = parser.parse_args()
    die_with_parent()
    sys.argv[1:] = []  # kserve parses the command line when it is imported; it is not meant for it
    try:
        _serve(given)
    except ConcordantError as error:
        sys.exit(f"Error: {error}")


def _serve(given: argparse.Namespace) -> None:
    from serving.server import serve

    if given.role == "predictor":
        from serving.predictor import Predictor

        predictor = Predictor(given.name, given.bundle)
        predictor.load()
        serve([predictor], host=given.host, port=given.port)
    else:
        from features.events import PseudonymKey
        from serving.patient import Patients
        from serving.transformer import Transformer

        patients = Patients(given.store, PseudonymKey.at(given.key_file), wall_clock=given.wall_clock)
        transformer = Transformer(given.name, patients)
        transformer.ready = True
        serve([transformer], host=given.host, port=given.port, predictor_host=given.predictor)


if __name__ == "__main__":
    main()
