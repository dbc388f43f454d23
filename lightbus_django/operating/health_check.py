"""Whether a service, or one of its processes, is well: for probes and monitoring."""

from collections.abc import Iterator

from .durations import duration
from .report import Status
from .status import FROZEN_AFTER


def find_reasons(
    status: Status,
    *,
    max_age: float,
    max_waiting: int | None = None,
    max_dead: int | None = None,
    process_name: str | None = None,
) -> Iterator[str]:
    """Yield the reasons why a service is not well; none if it is.

    Args:
        max_age: how many seconds old a listener's oldest event may be.
        max_waiting: how many events may wait for a listener; None for any number.
        max_dead: how many dead letters a listener may have; None for any number.
        process_name: look at this process alone, and not at backlogs.
    """
    if process_name is not None:
        processes = [each for each in status.processes if each.name == process_name]
        if not processes:
            yield from status.problems
            yield f"process {process_name} has no heartbeat"
        for process in processes:
            yield from (f"process {process.name}: {problem}" for problem in process.problems)
        return
    yield from status.problems
    for process in status.processes:
        # A process that was killed is not missed while others run its listeners.
        if process.seconds_silent <= FROZEN_AFTER:
            yield from (f"process {process.name}: {problem}" for problem in process.problems)
    for listener in status.listeners:
        if not listener.processes:
            yield f"listener {listener.name}: no process runs it"
        if listener.paused_at is not None:
            yield f"listener {listener.name}: paused by {listener.paused_by}"
        if listener.seconds_behind > max_age:
            yield f"listener {listener.name}: its oldest event was published {duration(listener.seconds_behind)} ago"
        if max_waiting is not None and (listener.waiting or 0) > max_waiting:
            yield f"listener {listener.name}: {listener.waiting} events are waiting"
        if max_dead is not None and listener.dead_letters > max_dead:
            yield f"listener {listener.name}: {listener.dead_letters} dead letters"
