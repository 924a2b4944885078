"""Cohort and feature rows of all shards: the bytes that `select_cohort` and `build_features` make."""

from kfp import dsl

from components.steps import component


@component
def join_features(
    decision: str,
    events: dsl.Input[dsl.Dataset],
    pieces: dsl.Input[list[dsl.Dataset]],
    cohort: dsl.Output[dsl.Dataset],
    features: dsl.Output[dsl.Dataset],
):
    from components.artifact import produce
    from components.sharded import joined_cohort, joined_features

    paths, told = [piece.path for piece in pieces], {"decision": decision}
    produce(cohort.path, "select_cohort", [events.path], told, lambda folder: joined_cohort(decision, paths, folder))
    produce(features.path, "build_features", [events.path, cohort.path], told, lambda folder: joined_features(paths, folder))
