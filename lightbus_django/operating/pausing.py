"""Pauses of listeners: they rest in all processes, and lose nothing."""

from django.db import router

from lightbus_django.conf import format_name, get_settings
from lightbus_django.database.errors import transient_errors
from lightbus_django.exceptions import ConfigurationError
from lightbus_django.listening.listener import Listener
from lightbus_django.listening.registry import registry
from lightbus_django.models import ConsumerGroup, ConsumerGroupQuerySet


def pause(listener_name: str, by: str) -> bool:
    """Pause a listener of this service; return False if it is paused already.

    Args:
        listener_name: the name of the listener, or of its consumer group.
        by: who asks for it, for others to see.

    Raises:
        ConfigurationError: there is no such listener, or it has not run yet.
        DatabaseUnavailable
    """
    rows = _rows(find_listener(listener_name))
    with transient_errors(rows.db):
        if not rows.exists():
            raise ConfigurationError(f"The listener {listener_name!r} has not run yet, so it can't be paused.")
        return bool(rows.pause(by[:150]))


def resume(listener_name: str) -> bool:
    """End the pause of a listener; return False if it is not paused. Raises as `pause` does."""
    rows = _rows(find_listener(listener_name))
    with transient_errors(rows.db):
        return bool(rows.resume())


def find_listener(name: str) -> Listener:
    """Return a listener of this service by its name, or that of its consumer group; raises ConfigurationError."""
    service_name = format_name(get_settings().service_name)
    found = [each for each in registry if name in (each.listener_name, each.group(service_name))]
    if len(found) == 1:
        return found[0]
    if found:
        groups = ", ".join(each.group(service_name) for each in found)
        raise ConfigurationError(f"There are several listeners {name!r}; name one of the groups {groups}.")
    known = ", ".join(sorted(each.listener_name for each in registry)) or "none"
    raise ConfigurationError(f"This service has no listener {name!r}; known: {known}.")


def _rows(listener: Listener) -> ConsumerGroupQuerySet:
    using = listener.using or router.db_for_write(ConsumerGroup)
    group = listener.group(format_name(get_settings().service_name))
    return ConsumerGroup.objects.using(using).filter(consumer_group=group)
