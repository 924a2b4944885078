"""A published bundle into a running InferenceService: a canary that its metrics promote or roll back. Returns what became of it."""

from kfp import dsl

from components.steps import component


@component
def deploy(bundle: dsl.Input[dsl.Model], name: str, namespace: str, traffic: int, watch_s: int, prometheus: str) -> str:
    from pathlib import Path

    from components import rollout

    place = f"{bundle.uri}/bundle"
    return rollout.in_cluster(Path(bundle.path), place, name, namespace, traffic, watch_s, prometheus, print)
