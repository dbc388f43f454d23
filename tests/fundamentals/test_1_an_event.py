"""An event is fired by one service, which goes on at once, and handled by every listener of every other.

Firing is `fire(...)`, or `on_commit(...)` within a transaction. A listener is a function under
`@listens_to(...)` in an app's `listeners.py`; `manage.py lightbus_listen` runs it. The listeners that are
run here are in tests/app/listeners.py: `book` writes a row for each order, `fragile` does what it is told.
"""

from lightbus_django import fire, on_commit
from tests.conftest import eventually


def test_from_fire_to_the_handler_in_another_process(manage, effects):
    fire("shop.order_placed", number=1)
    on_commit("shop.order_placed", number=2)
    manage("lightbus_listen")
    eventually(lambda: effects("book") == [1, 2])


def test_each_service_gets_every_event_and_the_processes_of_one_share_them(manage, effects, r):
    manage("lightbus_listen", "--service-name", "warehouse", "--processes", "2")
    manage("lightbus_listen", "--service-name", "billing")
    for number in range(100):
        fire("shop.order_placed", number=number)
    twice = sorted(2 * list(range(100)))
    eventually(lambda: len(effects("book")) >= 200)
    assert effects("book") == twice
    assert {"warehouse-book", "billing-book"} <= {row["name"] for row in r.xinfo_groups("shop.*:stream")}


def test_a_listener_that_was_not_running_gets_what_it_missed(manage, effects):
    first = manage("lightbus_listen", "--burst")
    assert first.wait(30) == 0
    fire("shop.order_placed", number=1)
    assert effects("book") == []
    second = manage("lightbus_listen", "--burst")
    assert second.wait(30) == 0
    assert effects("book") == [1]
