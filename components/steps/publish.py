"""What passed the gate becomes a bundle: verified, self-tested, with the feature store that it is served with."""

from kfp import dsl

from components.steps import component


@component
def publish(
    decision: str,
    features: dsl.Input[dsl.Dataset],
    ridge: dsl.Input[dsl.Model],
    trees: dsl.Input[dsl.Model],
    fusion: dsl.Input[dsl.Model],
    effects: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Dataset],
    bundle: dsl.Output[dsl.Model],
):
    from pathlib import Path

    from components.artifact import produce
    from components.signature import sign_published, signer
    from components.study import publish as write

    members = {"ridge": Path(ridge.path), "trees": Path(trees.path), "fusion": Path(fusion.path)}

    def work(folder):
        told = write(decision, Path(features.path), members, Path(effects.path), Path(evaluation.path), folder)
        sign_published(folder)
        return told

    inputs = [features.path, effects.path, evaluation.path, *(str(path) for path in members.values())]
    produce(bundle.path, "publish", inputs, {"decision": decision, "signer": signer()}, work)
