import pytest

from lightbus_django import listens_to
from tests.app.models import Effect


@pytest.fixture
def record(listeners):
    """A listener that writes down the numbers of events."""

    @listens_to("shop.order_placed")
    def record(event, number: int, **kwargs):
        Effect.objects.create(number=number)

    return record
