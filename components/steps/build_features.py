"""Events and cohort to feature rows: at time zero for training, at the newest date for serving; and the Feast store of both."""

from kfp import dsl

from components.steps import component


@component
def build_features(decision: str, events: dsl.Input[dsl.Dataset], cohort: dsl.Input[dsl.Dataset], features: dsl.Output[dsl.Dataset]):
    from pathlib import Path

    from components.artifact import produce
    from components.cohort import Cohort
    from components.decision import parse
    from components.study import build
    from features import events as table

    def work(folder):
        training, serving = build(parse(decision), table.read(Path(events.path)), Cohort.read(Path(cohort.path)), folder)
        return f"{len(training):,} training rows, {len(serving):,} serving rows of {training.x_NF.shape[1]} features"

    produce(features.path, "build_features", [events.path, cohort.path], {"decision": decision}, work)
