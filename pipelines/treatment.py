"""The one graph: records to a published bundle. The same definition runs on a laptop and compiles for a cluster."""

from dataclasses import asdict
from typing import Any

from kfp import dsl

from components.steps.build_features import build_features
from components.steps.build_features_shard import build_features_shard
from components.steps.build_shard import build_shard
from components.steps.clear_shards import clear_shards
from components.steps.deploy import deploy
from components.steps.estimate_effects import estimate_effects
from components.steps.evaluate import evaluate
from components.steps.fill_store import fill_store
from components.steps.gate import gate
from components.steps.ingest import ingest
from components.steps.join_features import join_features
from components.steps.join_shards import join_shards
from components.steps.plan_shards import plan_shards
from components.steps.publish import publish
from components.steps.read_shard import read_shard
from components.steps.select_cohort import select_cohort
from components.steps.settle_shards import settle_shards
from components.steps.train_fusion import train_fusion
from components.steps.train_ridge import train_ridge
from components.steps.train_trees import train_trees
from pipelines.placement import Placement


def graph(placement: Placement = Placement()) -> Any:
    """The pipeline, each step with its settings on a cluster; a laptop ignores them.

    With `placement.shards` above one, `placement.engine` tells what runs the shards of ingest: tasks of this graph (kubeflow), which then
    make the features too, or `processes` or `ray` inside the one step `ingest`. The results are the same bytes.
    """
    place = placement.place

    @dsl.pipeline(
        name="concordant-treatment",
        description="FHIR records to a verified treatment recommendation bundle",
        pipeline_root=placement.workspace.root,
    )
    def treatment(decision: str, source: str, truth: str = "", registry: str = "") -> None:
        """Learn a decision from a source.

        `decision` is the text of a decision file, `source` a folder or URL of FHIR NDJSON, `truth` a simulator's truth file or "",
        `registry` a folder that holds the models published before, or "".
        """
        records = _sharded if placement.shards > 1 and placement.engine == "kubeflow" else _whole
        cohort, features = records(placement, decision, source)
        place(fill_store(decision=decision, features=features))
        ridge = place(train_ridge(decision=decision, cohort=cohort, features=features))
        trees = place(train_trees(decision=decision, cohort=cohort, features=features))
        fusion = place(train_fusion(decision=decision, cohort=cohort, features=features, launch=placement.launch))
        members = {"ridge": ridge.output, "trees": trees.output, "fusion": fusion.output}
        effects = place(estimate_effects(decision=decision, cohort=cohort, features=features, **members))
        evaluated = {"cohort": cohort, "features": features, "effects": effects.output}
        verdict = place(evaluate(decision=decision, truth=truth, registry=registry, **evaluated))
        with dsl.If(place(gate(verdict=verdict.outputs["Output"])).output == "pass", name="passed the gate"):
            learned = members | {"features": features, "effects": effects.output, "evaluation": verdict.outputs["evaluation"]}
            bundle = place(publish(decision=decision, **learned))
            if placement.deploy:
                place(deploy(bundle=bundle.output, **asdict(placement.deploy)))

    return treatment


def _whole(placement: Placement, decision: Any, source: Any) -> tuple[Any, Any]:
    """Cohort and features of a source, a step each."""
    place = placement.place
    sharded: dict[str, Any] = {"engine": placement.engine, "shards": placement.shards} if placement.shards > 1 else {}
    if sharded and placement.engine == "ray" and placement.shuffle:
        sharded |= {"shuffle": f"{placement.shuffle}/{dsl.PIPELINE_JOB_ID_PLACEHOLDER}"}
    events = place(ingest(source=source, **sharded)).set_display_name("FHIR to events")
    cohort = place(select_cohort(decision=decision, events=events.output))
    features = place(build_features(decision=decision, events=events.output, cohort=cohort.output))
    return cohort.output, features.output


def _sharded(placement: Placement, decision: Any, source: Any) -> tuple[Any, Any]:
    """The same, divided by patient among tasks of the graph."""
    place, count = placement.place, placement.shards
    run = dsl.PIPELINE_JOB_ID_PLACEHOLDER
    plan = place(plan_shards(source=source, shuffle=placement.shuffle, run=run, shards=count))
    with dsl.ParallelFor(list(range(count)), name="read") as shard:
        read = place(read_shard(plan=plan.output, shard=shard))
    settled = place(settle_shards(plan=plan.output, shards=dsl.Collected(read.output)))
    with dsl.ParallelFor(list(range(count)), name="build") as shard:
        built = place(build_shard(settled=settled.output, shard=shard))
    events = place(join_shards(source=source, settled=settled.output, shards=dsl.Collected(built.output)))
    events.set_display_name("FHIR to events")
    place(clear_shards(settled=settled.output)).after(events)
    with dsl.ParallelFor(list(range(count)), name="features") as shard:
        piece = place(build_features_shard(decision=decision, events=events.output, shard=shard, shards=count))
    joined = place(join_features(decision=decision, events=events.output, pieces=dsl.Collected(piece.output)))
    return joined.outputs["cohort"], joined.outputs["features"]
