"""The states of an entry, and the moves between them."""

import pytest

from lightbus_django.bus.group_reads import Entry
from lightbus_django.listening.delivery import Delivery
from lightbus_django.listening.in_flight import InFlight

STREAM = "shop.*:stream"


def entry(number: int, stream: str = STREAM) -> Entry:
    return Entry(stream, f"{number}-0", {})


@pytest.fixture
def in_flight() -> InFlight:
    """Three entries that were fetched."""
    in_flight = InFlight()
    in_flight.add([Delivery(entry(number)) for number in range(3)])
    return in_flight


def states(in_flight: InFlight) -> dict[str, list[str]]:
    """Return the stream ids in each state that has some."""
    deliveries = {
        "fetched": in_flight.fetched,
        "waiting": in_flight.waiting,
        "set aside": [delivery for _, delivery in in_flight.set_aside],
        "handled": in_flight.handled,
    }
    found = {state: [delivery.entry.stream_id for delivery in those] for state, those in deliveries.items() if those}
    if in_flight.settled:
        found["settled"] = [stream_id for stream_ids in in_flight.settled.values() for stream_id in stream_ids]
    return found


def leased(in_flight: InFlight) -> set[str]:
    return {delivery.entry.stream_id for delivery in in_flight.leased}


def test_from_fetched_to_acknowledged(in_flight: InFlight) -> None:
    assert states(in_flight) == {"fetched": ["0-0", "1-0", "2-0"]}
    in_flight.admit()
    assert states(in_flight) == {"waiting": ["0-0", "1-0", "2-0"]}
    in_flight.finish(2)
    assert states(in_flight) == {"waiting": ["2-0"], "handled": ["0-0", "1-0"]}
    assert leased(in_flight) == {"0-0", "1-0", "2-0"}
    in_flight.settle()
    assert states(in_flight) == {"waiting": ["2-0"], "settled": ["0-0", "1-0"]}
    assert leased(in_flight) == {"2-0"}
    in_flight.acknowledged()
    assert states(in_flight) == {"waiting": ["2-0"]}


def test_what_the_listener_does_not_want_is_settled_at_once(in_flight: InFlight) -> None:
    in_flight.skip([entry(7), entry(8, "billing.*:stream")])
    assert in_flight.settled == {STREAM: ["7-0"], "billing.*:stream": ["8-0"]}
    assert leased(in_flight) == {"0-0", "1-0", "2-0"}


def test_what_is_older_than_the_group_never_waits(in_flight: InFlight) -> None:
    in_flight.admit(skipped=[in_flight.fetched[1]])
    assert states(in_flight) == {"waiting": ["0-0", "2-0"], "settled": ["1-0"]}
    assert leased(in_flight) == {"0-0", "2-0"}


def test_a_contended_event_waits_aside_until_its_time_has_come(in_flight: InFlight) -> None:
    in_flight.admit()
    in_flight.put_aside(until=10.0)
    in_flight.put_aside(until=11.0)
    assert states(in_flight) == {"waiting": ["2-0"], "set aside": ["0-0", "1-0"]}
    assert leased(in_flight) == {"0-0", "1-0", "2-0"}
    in_flight.resume(now=9.9)
    assert states(in_flight) == {"waiting": ["2-0"], "set aside": ["0-0", "1-0"]}
    in_flight.resume(now=12.0)
    assert states(in_flight) == {"waiting": ["2-0", "0-0"], "set aside": ["1-0"]}


def test_lost_commits_are_handled_again_before_all_others(in_flight: InFlight) -> None:
    in_flight.admit()
    in_flight.finish(2)
    in_flight.redo()
    assert states(in_flight) == {"waiting": ["0-0", "1-0", "2-0"]}


def test_released_entries_are_dropped_but_not_what_was_handled(in_flight: InFlight) -> None:
    in_flight.admit()
    in_flight.finish(1)
    in_flight.put_aside(until=10.0)
    in_flight.add([Delivery(entry(3))])
    in_flight.drop_unhandled()
    assert states(in_flight) == {"handled": ["0-0"]}
    assert leased(in_flight) == {"0-0"}
    in_flight.drop_all()
    assert states(in_flight) == {}
    assert leased(in_flight) == set()


def test_another_thread_never_sees_a_change_of_what_is_leased(in_flight: InFlight) -> None:
    before = in_flight.leased
    in_flight.admit()
    in_flight.finish(3)
    in_flight.settle()
    assert len(before) == 3
    assert in_flight.leased == ()


def test_entries_of_a_server_that_is_gone_are_dropped_but_not_what_was_handled(in_flight: InFlight) -> None:
    in_flight.add([Delivery(entry(number, "other")) for number in range(3, 7)])
    in_flight.admit()
    in_flight.put_aside(1.0)
    in_flight.finish(1)
    in_flight.add([Delivery(entry(7))])
    in_flight.drop_unhandled_of([STREAM])
    assert states(in_flight) == {"waiting": ["3-0", "4-0", "5-0", "6-0"], "handled": ["1-0"]}
    assert leased(in_flight) == {"1-0", "3-0", "4-0", "5-0", "6-0"}


def test_what_a_server_that_is_gone_did_not_acknowledge_is_kept(in_flight: InFlight) -> None:
    in_flight.skip([entry(8), entry(9, "other")])
    in_flight.acknowledged(but=["other", "unknown"])
    assert in_flight.settled == {"other": ["9-0"]}
    in_flight.acknowledged()
    assert not in_flight.settled
