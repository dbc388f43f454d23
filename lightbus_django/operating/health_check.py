"""Whether a service, or one of its processes, is well: for probes and monitoring."""

from collections.abc import Iterable, Iterator

from .assessment import FROZEN_AFTER
from .durations import duration
from .report import Process, Status


def check_process(name: str, processes: Iterable[Process]) -> Iterator[str]:
    """Yield the reasons why the process with this name is not well; none if it is.

    Args:
        processes: the processes of the service.
    """
    found = [process for process in processes if process.name == name]
    if not found:
        yield f"process {name} has no heartbeat"
    for process in found:
        yield from (f"process {name}: {problem}" for problem in process.problems)


def find_reasons(
    status: Status, *, max_age: float, max_waiting: int | None = None, max_dead: int | None = None
) -> Iterator[str]:
    """Yield the reasons why a service is not well; none if it is.

    Args:
        max_age: how many seconds old a listener's oldest event may be.
        max_waiting: how many events may wait for a listener; None for any number.
        max_dead: how many dead letters a listener may have; None for any number.
    """
    yield from status.problems
    for process in status.processes:
        # A process that was killed is not missed while others run its listeners.
        if process.seconds_silent <= FROZEN_AFTER:
            yield from (f"process {process.name}: {problem}" for problem in process.problems)
    for listener in status.listeners:
        if not listener.is_running:
            yield f"listener {listener.name}: no process runs it"
        if listener.paused_at is not None:
            yield f"listener {listener.name}: paused by {listener.paused_by}"
        if listener.seconds_behind > max_age:
            yield f"listener {listener.name}: its oldest event was published {duration(listener.seconds_behind)} ago"
        if max_waiting is not None and (listener.waiting or 0) > max_waiting:
            yield f"listener {listener.name}: {listener.waiting} events are waiting"
        if max_dead is not None and listener.dead_letters > max_dead:
            yield f"listener {listener.name}: {listener.dead_letters} dead letters"
