"""The events of all shards as one table: the bytes that `ingest` makes, under the name of its result."""

from kfp import dsl

from components.steps import component


@component
def join_shards(source: str, settled: dsl.Input[dsl.Dataset], shards: list[str], events: dsl.Output[dsl.Dataset]):
    from pathlib import Path

    from components.artifact import produce, pseudonym_key_path
    from features.events import PseudonymKey
    from features.shards import fingerprinted, join, sentence

    key, place = PseudonymKey.at(pseudonym_key_path()), Path(settled.path).read_text(encoding="utf-8")
    produce(events.path, "ingest", [], fingerprinted(source, key), lambda folder: sentence(join(place, folder)), packages=("features",))
