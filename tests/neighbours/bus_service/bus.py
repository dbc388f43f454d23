"""A small Lightbus service. It runs in a process of its own, where Lightbus is installed and Django is not.

It has an API of its own, `my_company.shop`, and listens to that and to one of ours, `prices`. What it
handles it writes to the file HANDLED, a line of JSON for each event.
"""

import json
import os
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import lightbus
from lightbus.utilities.deforming import deform_to_bus
from samples import VALUES, Money, Size

bus = lightbus.create()


class ShopApi(lightbus.Api):
    order_placed = lightbus.Event([lightbus.Parameter(name, type(value)) for name, value in VALUES.items()])
    order_cancelled = lightbus.Event([lightbus.Parameter("number", int)])

    class Meta:
        name = "my_company.shop"


bus.client.register_api(ShopApi())


def write_down(
    event: lightbus.EventMessage,
    number: int,
    price: Decimal,
    changed_at: datetime,
    local_time: datetime,
    day: date,
    offer: UUID,
    size: Size,
    total: Money,
    picture: bytes,
    text: str,
    is_sale: bool,
    nothing: None,
    details: dict,
) -> None:
    values = {name: value for name, value in locals().items() if name != "event"}
    line = {
        "id": event.id,
        "name": event.canonical_name,
        "version": event.version,
        "types": {name: type(value).__name__ for name, value in values.items()},
        "values": deform_to_bus(values),
    }
    with Path(os.environ["HANDLED"]).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


bus.client.listen_for_events(
    [("prices", "changed"), ("my_company.shop", "order_placed")], listener=write_down, listener_name="write_down"
)
