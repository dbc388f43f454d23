"""Consumer groups of this service that no listener has: what a renamed or removed listener left."""

from collections.abc import Iterable
from typing import NamedTuple

from lightbus_django.listening.registry import registry


class UnclaimedGroups(NamedTuple):
    """The consumer groups without a listener."""

    problem: str
    way_out: str


def find_unclaimed_groups(recorded: Iterable[str], service_name: str) -> UnclaimedGroups | None:
    """Return what is wrong with the consumer groups that no listener has, and what to do; None if there are none.

    Args:
        recorded: the consumer groups of this service that the databases know.
        service_name: the name of this service.
    """
    groups = sorted(set(recorded) - {listener.group(service_name) for listener in registry})
    if not groups:
        return None
    if len(groups) == 1:
        (group,) = groups
        whose = "its"
        problem = f"no listener of this service has the consumer group {group}, so its events wait"
    else:
        group, whose = "GROUP", "a group's"
        problem = f"no listener of this service has the consumer groups {', '.join(groups)}, so their events wait"
    return UnclaimedGroups(
        problem,
        f"if {whose} listener was renamed, stop the processes that run it, wait two minutes, and run manage.py "
        f"lightbus_retire {group} --move-to LISTENER; if it was removed, run manage.py lightbus_retire {group}",
    )
