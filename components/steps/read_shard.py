"""One share of the files to columns, divided by patient."""

from kfp import dsl

from components.steps import component


@component
def read_shard(plan: dsl.Input[dsl.Dataset], shard: int) -> str:
    from pathlib import Path

    from components.artifact import perform, pseudonym_key_path
    from features.events import PseudonymKey
    from features.shards import read_share

    key, place = PseudonymKey.at(pseudonym_key_path()), Path(plan.path).read_text(encoding="utf-8")
    return perform("read_shard", lambda: f"shard {shard}: {read_share(place, shard, key):,} resources") if place else ""
