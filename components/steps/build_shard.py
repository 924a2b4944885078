"""The events of some groups of patients."""

from kfp import dsl

from components.steps import component


@component
def build_shard(settled: dsl.Input[dsl.Dataset], shard: int) -> str:
    from pathlib import Path

    from components.artifact import perform, pseudonym_key_path
    from features.events import PseudonymKey
    from features.shards import build

    key, place = PseudonymKey.at(pseudonym_key_path()), Path(settled.path).read_text(encoding="utf-8")
    return perform("build_shard", lambda: f"shard {shard}: {build(place, shard, key):,} events") if place else ""
