"""Feature rows to a Feast store: a view a modality for analysts, packed rows for serving."""

from kfp import dsl

from components.steps import component


@component
def fill_store(decision: str, features: dsl.Input[dsl.Dataset], store: dsl.Output[dsl.Dataset]):
    import os
    from pathlib import Path

    from components.artifact import produce
    from components.decision import parse
    from components.study import fill_store as fill

    home = os.environ.get("CONCORDANT_STORE", "")

    def work(folder):
        return fill(parse(decision), Path(features.path), folder, home)

    produce(store.path, "fill_store", [features.path], {"decision": decision, "home": home}, work)
