"""Multimodal Lightning network, cross-fitted; for dose finding once more without genomics. On a cluster also as a TrainJob."""

from kfp import dsl

from components.steps import component


@component
def train_fusion(
    decision: str, cohort: dsl.Input[dsl.Dataset], features: dsl.Input[dsl.Dataset], model: dsl.Output[dsl.Model], launch: str = ""
):
    import functools
    import os
    from pathlib import Path

    from components import train_job
    from components.artifact import produce
    from components.cohort import Cohort
    from components.decision import parse
    from components.study import train

    cache = os.environ.get("CONCORDANT_CACHE")  # where a killed run may go on from
    home = os.environ.get("CONCORDANT_CHECKPOINTS") or (f"{cache}/checkpoints" if cache else None)

    def here(folder):
        from components.models.fusion_training import fit

        kept = functools.partial(fit, checkpoints=Path(home) if home else None)
        return train(parse(decision), Cohort.read(Path(cohort.path)), Path(features.path), kept, folder)

    work = functools.partial(train_job.run, launch, decision, Path(cohort.path), Path(features.path), here=here)
    produce(model.path, "train_fusion", [cohort.path, features.path], {"decision": decision, "launch": launch}, work)
