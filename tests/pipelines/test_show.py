"""What people read in a terminal holds what the answer says, whatever it says."""

import io
import json

from answers import answers
from conftest import examples
from hypothesis import given, settings
from rich.console import Console

from pipelines import show
from serving.schema import Response


@settings(derandomize=True, max_examples=examples(60, 1000), deadline=None)
@given(told=answers())
def test_nothing_that_may_not_be_given_is_left_unsaid(told: Response) -> None:
    """Also where there is no score: what a rule blocks is told on a refusal too."""
    text = io.StringIO()
    show.answer(Console(file=text, width=100_000, soft_wrap=True), json.loads(told.model_dump_json()))
    said = text.getvalue()
    for option in told.excluded:
        assert f"not offered: {option.label} ({option.code}: {option.reason}" in said
    for drug in told.ruled_out:
        assert f"not to be given: {drug.drug} ({drug.code}: {drug.reason}" in said
    assert said.count("not to be given: ") == len(told.ruled_out)
    if told.recommended is not None:
        assert f"Recommended: {told.ranked[0].label}" in said
    else:
        assert f"No single recommendation: {told.abstained}" in said
