from decimal import Decimal
from typing import Any

from lightbus_django import EventMessage, listens_to

from .models import CompetitorPrice, PriceAlert


@listens_to("competitor_prices.changed", listener_name="update_db", start="beginning")
def update_db(event: EventMessage, sku: str, price: Decimal, change: int, **kwargs: Any) -> None:
    CompetitorPrice.objects.create(sku=sku, price=price, change=change)


@listens_to("competitor_prices.changed", listener_name="send_price_alerts", start="beginning")
def send_price_alerts(event: EventMessage, sku: str, price: Decimal, change: int, **kwargs: Any) -> None:
    PriceAlert.objects.create(change=change, text=f"{sku} costs {price} elsewhere")
