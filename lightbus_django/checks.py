"""System checks. Their ids are stable: E001 to E099 for the setting, E100 on for listeners."""

from collections.abc import Sequence
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error
from django.core.checks import Warning as CheckWarning
from django.db import connections, router

from .bus.client import RedisClient
from .conf import find_problems, get_settings, is_random
from .database.connections import check_autocommit
from .exceptions import ConfigurationError
from .listening.registry import registry
from .models import ProcessedEvent


def check_settings(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Check `settings.LIGHTBUS`.

    E001 not a dict, E002 no service name, E003 an unknown key, E004 a value of a wrong type or range,
    E006 settings that contradict each other, W001 a random process name where DEBUG is off, E005 a random service name.
    """
    raw: Any = getattr(settings, "LIGHTBUS", None)
    messages: list[CheckMessage] = [
        Error(problem.message, hint=problem.hint, id=f"lightbus_django.{problem.id}") for problem in find_problems(raw)
    ]
    if messages:
        return messages
    try:
        RedisClient(get_settings().url, timeout=1)
    except ConfigurationError as error:
        return [Error(str(error), id="lightbus_django.E004")]
    if is_random(raw["SERVICE_NAME"]):
        messages.append(
            Error(
                'settings.LIGHTBUS["SERVICE_NAME"] is another one at each start, and so are the consumer groups.',
                hint="Name the service by a plain text, the same for all its processes.",
                id="lightbus_django.E005",
            )
        )
    elif not settings.DEBUG and is_random(raw.get("PROCESS_NAME", "{random4}")):
        messages.append(
            CheckWarning(
                'settings.LIGHTBUS["PROCESS_NAME"] is another one at each start.',
                hint="What a process leaves waits for ACKNOWLEDGEMENT_TIMEOUT. A name that stays, such as "
                "'{hostname}', lets it go on with that at once when it comes back.",
                id="lightbus_django.W001",
            )
        )
    return messages


def check_listeners(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Check each listener: E100 a handler that can't be called with an event, E101 an unknown database,
    E102 two listeners of one consumer group, E103 a database without autocommit.
    """
    messages: list[CheckMessage] = []
    raw: Any = getattr(settings, "LIGHTBUS", None)
    if not find_problems(raw):
        try:
            registry.check_groups(raw["SERVICE_NAME"])
        except ConfigurationError as error:
            messages.append(Error(str(error), id="lightbus_django.E102"))
    for listener in registry:
        try:
            listener.check()
        except ConfigurationError as error:
            messages.append(Error(str(error), obj=listener.path, id="lightbus_django.E100"))
        if listener.using is not None and listener.using not in connections:
            known = ", ".join(connections)
            messages.append(
                Error(
                    f"The database {listener.using!r} is not in settings.DATABASES.",
                    hint=f"Known: {known}.",
                    obj=listener.path,
                    id="lightbus_django.E101",
                )
            )
    aliases = {listener.using or router.db_for_write(ProcessedEvent) for listener in registry}
    for alias in sorted(aliases.intersection(connections)):
        try:
            check_autocommit(alias)
        except ConfigurationError as error:
            messages.append(Error(str(error), id="lightbus_django.E103"))
    return messages
