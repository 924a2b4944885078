"""What the shards left for each other is removed: a step of its own, because only after `join_shards` has ended its result is safe."""

from kfp import dsl

from components.steps import component


@component
def clear_shards(settled: dsl.Input[dsl.Dataset]):
    from pathlib import Path

    from components.artifact import perform
    from features.shards import clear

    place = Path(settled.path).read_text(encoding="utf-8")

    def work():
        clear(place)
        return "nothing is left between the shards"

    if place:
        perform("clear_shards", work)
