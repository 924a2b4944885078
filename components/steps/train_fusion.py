"""Multimodal Lightning network, cross-fitted; for dose finding once more without genomics. On a cluster also as a TrainJob."""

from kfp import dsl

from components.steps import component


@component
def train_fusion(
    decision: str, cohort: dsl.Input[dsl.Dataset], features: dsl.Input[dsl.Dataset], model: dsl.Output[dsl.Model], launch: str = ""
):
    import functools
    from pathlib import Path

    from components import train_job
    from components.artifact import checkpoints, produce
    from components.cohort import Cohort
    from components.decision import parse
    from components.study import train

    def here(folder):
        from components.models.fusion_training import fit

        kept = functools.partial(fit, checkpoints=checkpoints())
        return train(parse(decision), Cohort.read(Path(cohort.path)), Path(features.path), kept, folder)

    work = functools.partial(train_job.run, launch, decision, Path(cohort.path), Path(features.path), here=here)
    produce(model.path, "train_fusion", [cohort.path, features.path], {"decision": decision, "launch": launch}, work)
