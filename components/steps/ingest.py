"""FHIR records to dated events under keyed pseudonyms."""

from kfp import dsl

from components.steps import component


@component
def ingest(source: str, events: dsl.Output[dsl.Dataset]):
    from components.artifact import produce, pseudonym_key_path
    from features.events import PseudonymKey
    from features.events import ingest as read
    from features.source import fingerprint

    key = PseudonymKey.at(pseudonym_key_path())

    def work(folder):
        told = read(source, folder, key)
        return "{received:,} resources, {quarantined:,} in quarantine, {events:,} events of {patients:,} patients".format(**told)

    parameters = {"source": fingerprint(source), "key": key.number("fingerprint of this key")}
    produce(events.path, "ingest", [], parameters, work, packages=("features",))
