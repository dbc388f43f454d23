"""Listeners that fail."""

from typing import Any

import sentry_sdk

from lightbus_django import EventMessage, fire, listens_to, on_commit
from tests.app.models import Effect


@listens_to("shop.order_placed", listener_name="charge", start="beginning")
def charge(event: EventMessage, card: str, **kwargs: Any) -> None:
    Effect.objects.create(name=card)
    on_commit("shop.order_charged", card=card)
    fire("shop.order_seen", card=card)
    look_up(card)


def look_up(card: str) -> None:
    if card == "reported":
        try:
            raise LookupError(f"no card {card}")
        except LookupError as error:
            sentry_sdk.capture_exception(error)
            raise
    try:
        raise KeyError(card)
    except KeyError as error:
        raise LookupError("no such card") from error
