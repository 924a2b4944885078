"""The verdict as a step of its own with one return value: the only form of condition that laptop and cluster both honour."""

from components.steps import component


@component
def gate(verdict: str) -> str:
    return verdict
