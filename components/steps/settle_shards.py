"""What no shard can judge alone: versions, repeats, Medications elsewhere, the account of every resource."""

from kfp import dsl

from components.steps import component


@component
def settle_shards(plan: dsl.Input[dsl.Dataset], shards: list[str], settled: dsl.Output[dsl.Dataset]):
    from pathlib import Path

    from components.artifact import perform, pseudonym_key_path
    from features.events import PseudonymKey
    from features.shards import settle

    key, place = PseudonymKey.at(pseudonym_key_path()), Path(plan.path).read_text(encoding="utf-8")

    def work():
        told = settle(place, key)
        return "{received:,} resources, {quarantined:,} in quarantine, of {patients:,} patients".format(**told)

    if place:
        perform("settle_shards", work)
    Path(settled.path).write_text(place, encoding="utf-8")
