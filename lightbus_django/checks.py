"""System checks. Their ids are stable: E001 to E099 for settings.LIGHTBUS, E100 and above for listeners."""

from collections.abc import Sequence
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error
from django.core.checks import Warning as CheckWarning
from django.db import connections, router

from .bus.client import RedisClient
from .conf import find_problems, format_name, get_settings, is_random
from .database.connections import check_autocommit
from .exceptions import ConfigurationError
from .listening.registry import registry
from .models import ConsumerGroup, ProcessedEvent
from .operating.unclaimed_groups import find_unclaimed_groups


def check_settings(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Check `settings.LIGHTBUS`.

    E001: not a dict. E002: SERVICE_NAME is missing. E003: unknown key. E004: invalid value. E005: random service name.
    E006: contradictory values. W001: random process name with DEBUG off.
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
                'settings.LIGHTBUS["SERVICE_NAME"] changes with every start, and so do the consumer groups.',
                hint="Use a fixed name that all processes of the service share, without random placeholders.",
                id="lightbus_django.E005",
            )
        )
    elif not settings.DEBUG and is_random(raw.get("PROCESS_NAME", "{random4}")):
        messages.append(
            CheckWarning(
                'settings.LIGHTBUS["PROCESS_NAME"] changes with every start.',
                hint="With a fixed name such as '{hostname}', a restarted process handles its pending events at once, "
                "instead of after ACKNOWLEDGEMENT_TIMEOUT.",
                id="lightbus_django.W001",
            )
        )
    return messages


def check_listeners(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Check the listeners.

    E100: the handler can't be called with an event. E101: unknown database. E102: two listeners share a consumer group.
    E103: the database has AUTOCOMMIT off.
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
                    hint=f"Known databases: {known}.",
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


def check_groups(
    app_configs: Sequence[AppConfig] | None, databases: Sequence[str] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """Check the records of consumer groups, with `check --database` and `migrate`.

    W002: groups of this service have no listener.
    """
    raw: Any = getattr(settings, "LIGHTBUS", None)
    if find_problems(raw) or is_random(raw["SERVICE_NAME"]):
        return []
    service_name = format_name(raw["SERVICE_NAME"])
    recorded: set[str] = set()
    for alias in databases or ():
        if connections[alias].vendor == "unknown":
            continue
        if ConsumerGroup._meta.db_table not in connections[alias].introspection.table_names():
            continue  # it is about to be migrated
        rows = ConsumerGroup.objects.using(alias).filter(service_name=service_name)
        recorded.update(rows.values_list("consumer_group", flat=True))
    unclaimed = find_unclaimed_groups(recorded, service_name)
    if unclaimed is None:
        return []
    return [CheckWarning(_sentence(unclaimed.problem), hint=_sentence(unclaimed.way_out), id="lightbus_django.W002")]


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
