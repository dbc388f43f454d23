"""The states of a consumer."""

from enum import Enum


class State(Enum):
    """Where a consumer gets its next events from; docs/architecture.md draws how the states follow one another."""

    JOINING = "joining its group"
    OWN_PENDING = "reading its own pending events"
    RECLAIMING = "reclaiming events from other consumers"
    READING = "reading new events"
    PAUSED = "paused"
    STOPPED = "stopped"
