"""Consumer groups of this service that no listener has: what a renamed or removed listener left."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from lightbus_django.listening.registry import registry


class UnclaimedGroup(NamedTuple):
    """A consumer group without a listener."""

    problem: str
    way_out: str


def find_unclaimed_groups(recorded: Iterable[str], service_name: str) -> Iterator[UnclaimedGroup]:
    """Yield what is wrong with the consumer groups that no listener has, and what to do.

    Args:
        recorded: the consumer groups of this service that the databases know.
        service_name: the name of this service.
    """
    for group in sorted(set(recorded) - {listener.group(service_name) for listener in registry}):
        yield UnclaimedGroup(
            f"no listener of this service has the consumer group {group}, so its events wait",
            f"if its listener was renamed, stop the processes that run it, wait two minutes, and run manage.py "
            f"lightbus_retire {group} --move-to LISTENER; if it was removed, run manage.py lightbus_retire {group}",
        )
