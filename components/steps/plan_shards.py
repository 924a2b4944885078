"""A source dealt out to shards; `plan` says where they leave things for each other, nothing where an earlier run made the events.

An artifact, because kfp's local runner (2.17) gives the tasks of a loop the loop's item in place of a parameter from another task.
"""

from kfp import dsl

from components.steps import component


@component
def plan_shards(source: str, shuffle: str, run: str, shards: int, plan: dsl.Output[dsl.Dataset]):
    from pathlib import Path

    from components.artifact import made_before, perform, pseudonym_key_path, shuffle_place
    from features.events import PseudonymKey, now_us
    from features.shards import fingerprinted
    from features.shards import plan as deal

    key, place = PseudonymKey.at(pseudonym_key_path()), shuffle_place(shuffle, run)

    def work():
        told = deal(source, place, shards, now_us(), key)
        return f"{len(told.tasks):,} files in {shards} shards, {told.groups:,} groups of patients"

    made = made_before("ingest", [], fingerprinted(source, key), ("features",))
    if not made:
        perform("plan_shards", work)
    Path(plan.path).write_text("" if made else place, encoding="utf-8")
