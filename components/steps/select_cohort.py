"""Events to the decision's cohort: who was asked, when, what was done, what happened."""

from kfp import dsl

from components.steps import component


@component
def select_cohort(decision: str, events: dsl.Input[dsl.Dataset], cohort: dsl.Output[dsl.Dataset]):
    from pathlib import Path

    from components.artifact import produce
    from components.cohort import select
    from components.decision import parse
    from features import events as table

    def work(folder):
        found = select(table.read(Path(events.path)), parse(decision))
        found.write(folder)
        return f"{len(found):,} of {found.flow[0][1]:,} patients, {int(found.observed_N.sum()):,} with an outcome"

    produce(cohort.path, "select_cohort", [events.path], {"decision": decision}, work)
