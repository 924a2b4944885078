"""The OpenAPI document: it is what the code does, its examples are answered, and no request that can be made of it breaks anything."""

import json
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from conftest import examples
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance
from served import ask

from pipelines.serve import Endpoints
from serving import contract

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("whole")]
HERE = Path(contract.__file__)


def test_the_document_beside_the_code_is_the_one_that_the_code_makes() -> None:
    text = HERE.with_name("openapi.json").read_text(encoding="utf-8")
    assert json.loads(text) == contract.document(), "run: python -m serving contract > serving/openapi.json"


def test_the_examples_are_answered_as_the_document_says(endpoints: Endpoints, patients: list[str]) -> None:
    for path, operations in contract.document(endpoints.name)["paths"].items():
        content = operations.get("post", {}).get("requestBody", {}).get("content", {}).get("application/json", {})
        for example in content.get("examples", {}).values():
            text = json.dumps(example["value"]).replace("patient-1", patients[0])
            assert ask(endpoints.base + path, text.encode()).status == 200, path


def _cases(endpoints: Endpoints, role: str, base: str, cases: int) -> str:
    """Every check of schemathesis on generated requests, valid and not, of every operation; how many there were.

    Where a rule can't be said in JSON schema (a shape that fits its data, a record as text), a request that fits the schema may be refused.
    """
    document = contract.document(endpoints.name, role)
    schema = schemathesis.openapi.from_dict(document)
    operations = [entry.ok() for entry in schema.get_all_operations()]
    each, asked = max(cases // len(operations), 10), 0
    for operation in operations:
        for mode in schemathesis.GenerationMode:

            @given(case=operation.as_strategy(generation_mode=mode))
            @settings(max_examples=each // 2, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
                      suppress_health_check=list(HealthCheck))  # fmt: skip
            def tried(case: Any) -> None:
                nonlocal asked
                asked += 1
                unsaid = role == "predictor" or "infer" in case.operation.path
                case.call_and_validate(base_url=base, timeout=10, excluded_checks=[positive_data_acceptance] if unsaid else [])

            try:
                tried()
            except Exception as error:
                if type(error).__name__ != "Unsatisfiable":
                    raise
    return f"{asked:,} cases of {len(operations)} operations, 0 failures"


@pytest.mark.deep
def test_schemathesis_finds_nothing_in_the_transformer(endpoints: Endpoints, record_property: Any) -> None:
    record_property("found", _cases(endpoints, "transformer", endpoints.base, examples(240, 5_200)))


@pytest.mark.deep
def test_schemathesis_finds_nothing_in_the_predictor(endpoints: Endpoints, record_property: Any) -> None:
    record_property("found", _cases(endpoints, "predictor", f"http://127.0.0.1:{endpoints._predictor_port}", examples(160, 5_200)))
