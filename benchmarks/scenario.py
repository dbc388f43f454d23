"""What a scenario is made of."""

from dataclasses import dataclass, field
from typing import Any

from .results import Target

SMOKE_EVENTS = 250


@dataclass(frozen=True)
class Subject:
    key: str
    label: str
    run: str
    """A function below `benchmarks.subjects`."""
    options: dict[str, Any] = field(default_factory=dict)


class Competitor(Subject):
    """`competitors/{key}.py`, in an environment of its own; `run` is "consume" or "fire"."""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    name: str
    title: str
    events: int
    subjects: tuple[Subject, ...]
    reference: str | None = None
    targets: tuple[Target, ...] = ()
    measures: tuple[str, ...] = ("rate", "cpu_cost")
    databases: tuple[str, ...] = ()
    """Those that it is run on, one after the other; none where the database has no part in it."""
    smoke: dict[str, Any] = field(default_factory=lambda: {"events": SMOKE_EVENTS})
    """What options are at most where only counts are checked."""
    rounds: int | None = None
    """How often it is run, if not as often as the others."""
    by_name_only: bool = False
    """Whether it is left out unless it is asked for."""
