"""Cohort and feature rows of some groups of patients."""

from kfp import dsl

from components.steps import component


@component
def build_features_shard(decision: str, events: dsl.Input[dsl.Dataset], shard: int, shards: int, piece: dsl.Output[dsl.Dataset]):
    from pathlib import Path

    from components.artifact import produce
    from components.decision import parse
    from components.sharded import build

    def work(folder):
        training, serving = build(parse(decision), Path(events.path), shard, shards, folder)
        return f"shard {shard}: {training:,} training rows, {serving:,} serving rows"

    parameters = {"decision": decision, "shard": shard, "shards": shards}
    produce(piece.path, "build_features_shard", [events.path], parameters, work)
