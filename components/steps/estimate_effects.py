"""Members to effects: the blend learned out of fold, and the cross-fitted effects of every cohort row."""

from kfp import dsl

from components.steps import component


@component
def estimate_effects(
    decision: str,
    cohort: dsl.Input[dsl.Dataset],
    features: dsl.Input[dsl.Dataset],
    ridge: dsl.Input[dsl.Model],
    trees: dsl.Input[dsl.Model],
    fusion: dsl.Input[dsl.Model],
    effects: dsl.Output[dsl.Model],
):
    from pathlib import Path

    from components.artifact import produce
    from components.cohort import Cohort
    from components.decision import parse
    from components.study import blend

    members = {"ridge": Path(ridge.path), "trees": Path(trees.path), "fusion": Path(fusion.path)}

    def work(folder):
        return blend(parse(decision), Cohort.read(Path(cohort.path)), Path(features.path), members, folder)

    inputs = [cohort.path, features.path, *(str(path) for path in members.values())]
    produce(effects.path, "estimate_effects", inputs, {"decision": decision}, work)
