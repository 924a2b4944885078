"""The one graph: records to a published bundle. The same definition runs on a laptop and compiles for a cluster."""

from typing import Any

from kfp import dsl

from components.steps.build_features import build_features
from components.steps.estimate_effects import estimate_effects
from components.steps.evaluate import evaluate
from components.steps.fill_store import fill_store
from components.steps.gate import gate
from components.steps.ingest import ingest
from components.steps.publish import publish
from components.steps.select_cohort import select_cohort
from components.steps.train_fusion import train_fusion
from components.steps.train_ridge import train_ridge
from components.steps.train_trees import train_trees
from pipelines.placement import Placement


def graph(placement: Placement = Placement()) -> Any:
    """The pipeline, each step with its settings on a cluster; a laptop ignores them."""
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
        events = place(ingest(source=source)).set_display_name("FHIR to events")
        cohort = place(select_cohort(decision=decision, events=events.output))
        features = place(build_features(decision=decision, events=events.output, cohort=cohort.output))
        place(fill_store(decision=decision, features=features.output))
        ridge = place(train_ridge(decision=decision, cohort=cohort.output, features=features.output))
        trees = place(train_trees(decision=decision, cohort=cohort.output, features=features.output))
        fusion = place(train_fusion(decision=decision, cohort=cohort.output, features=features.output))
        members = {"ridge": ridge.output, "trees": trees.output, "fusion": fusion.output}
        effects = place(estimate_effects(decision=decision, cohort=cohort.output, features=features.output, **members))
        evaluated = {"cohort": cohort.output, "features": features.output, "effects": effects.output}
        verdict = place(evaluate(decision=decision, truth=truth, registry=registry, **evaluated))
        with dsl.If(place(gate(verdict=verdict.outputs["Output"])).output == "pass", name="passed the gate"):
            learned = members | {"features": features.output, "effects": effects.output, "evaluation": verdict.outputs["evaluation"]}
            place(publish(decision=decision, **learned))

    return treatment


treatment = graph()
