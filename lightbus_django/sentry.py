"""Sentry: handlers' exceptions, with their tracebacks and without the payload. Needs the extra `sentry`.

sentry_sdk.init(dsn=..., integrations=[LightbusIntegration()])
"""

from contextlib import suppress
from datetime import datetime
from typing import Any

import sentry_sdk
from sentry_sdk.integrations import Integration
from sentry_sdk.scope import add_global_event_processor
from sentry_sdk.utils import event_from_exception

from .signals import event_failed

__all__ = ["LightbusIntegration"]

_REPORTED = "_lightbus_django_reported"
"""An attribute of exceptions that were sent by others. The SDK itself forgets them with the context of the handler."""


class LightbusIntegration(Integration):
    """Reports each failed attempt at an event to Sentry, once.

    It is not reported if the handler has done so itself before it raised. The log line about it, which Sentry's logging
    integration would report too, is left out; the other lines of level ERROR are still reported by that integration.
    """

    identifier = "lightbus_django"

    def __init__(self, *, error_text: bool = True) -> None:
        """Make the integration.

        Args:
            error_text: whether to send the text of exceptions, which may quote the payload, as that of a KeyError does.
        """
        self.error_text = error_text

    @staticmethod
    def setup_once() -> None:
        """Connect to the signals; Sentry calls this once in a process."""
        event_failed.connect(_report)
        add_global_event_processor(_process)


def _report(
    sender: object,
    *,
    listener_name: str,
    consumer_group: str,
    event_name: str,
    event_id: str,
    attempt: int,
    exception: BaseException,
    next_attempt_at: datetime | None,
    **kwargs: object,
) -> None:
    client = sentry_sdk.get_client()
    integration = client.get_integration(LightbusIntegration)
    if integration is None:
        return
    if hasattr(exception, _REPORTED):
        delattr(exception, _REPORTED)
        return
    # Local variables of the handler, and of our frames that call it, are the payload.
    options = {**client.options, "include_local_variables": False}
    mechanism = {"type": LightbusIntegration.identifier, "handled": False}
    event, hint = event_from_exception(exception, client_options=options, mechanism=mechanism)
    if not integration.error_text:
        for value in event["exception"]["values"]:
            value["value"] = ""
    with sentry_sdk.new_scope() as scope:
        scope.set_transaction_name(consumer_group)
        scope.set_tag("lightbus.listener", listener_name)
        scope.set_tag("lightbus.event", event_name)
        scope.set_tag("lightbus.event_id", event_id)
        scope.set_tag("lightbus.dead_letter", "yes" if next_attempt_at is None else "no")
        next_at = None if next_attempt_at is None else next_attempt_at.isoformat()
        context = {"consumer_group": consumer_group, "attempt": attempt, "next_attempt_at": next_at}
        scope.set_context("lightbus", context)
        scope.capture_event(event, hint={**hint, "lightbus_django": True})


def _process(event: Any, hint: dict[str, Any]) -> Any:
    """Drop the log line about a failed event, and remember exceptions that are reported by others."""
    if "lightbus_django" in hint or sentry_sdk.get_client().get_integration(LightbusIntegration) is None:
        return event
    record = hint.get("log_record")
    if record is not None and record.name == "lightbus_django" and hasattr(record, "failed_event_id"):
        return None
    if exc_info := hint.get("exc_info"):
        with suppress(Exception):  # some exceptions are frozen
            setattr(exc_info[1], _REPORTED, True)
    return event
