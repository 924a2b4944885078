"""FHIR records to dated events under keyed pseudonyms."""

from kfp import dsl

from components.steps import component


@component
def ingest(source: str, events: dsl.Output[dsl.Dataset], engine: str = "processes", shards: int = 1, shuffle: str = ""):
    from components.artifact import produce, pseudonym_key_path
    from features.events import PseudonymKey
    from features.shards import fingerprinted, sentence
    from features.shards import ingest as read

    key = PseudonymKey.at(pseudonym_key_path())

    def work(folder):
        return sentence(read(source, folder, key, engine=engine, shards=shards, place=shuffle))

    produce(events.path, "ingest", [], fingerprinted(source, key), work, packages=("features",))
