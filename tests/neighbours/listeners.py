"""What our processes listen to that have Lightbus beside them: an event of ours and one of Lightbus."""

from typing import Any

from lightbus_django import EventMessage, listens_to
from tests.app.models import Effect


@listens_to(["prices.changed", "my_company.shop.order_placed"], listener_name="keep_books", start="beginning")
def keep_books(event: EventMessage, number: int, **kwargs: Any) -> None:
    Effect.objects.create(name=event.api_name, number=number)
