"""PostgreSQL crashes, and deferred commits are lost with it: never those of an event that was acknowledged.

The server writes nothing to its disk by itself for ten seconds, so only the gate before the acknowledgement does.
"""

import signal

import pytest

from lightbus_django import fire

LISTEN = ("lightbus_listen", "--listener", "fragile", "--process-name", "web")

EVENTS = 20

POSTGRESQL = {"wal_writer_delay": "10s", "autovacuum": "off"}


@pytest.fixture
def crash(postgresql):
    """Let the server lose what is not on its disk."""

    def crash():
        postgresql.stop(signal.SIGQUIT)
        postgresql.start()

    return crash


@pytest.fixture
def handled(postgresql):
    """The numbers of the events whose effects are in the database; there are none before the test."""

    def read():
        return [number for (number,) in postgresql.query("SELECT number FROM tests_effect ORDER BY number")]

    for table in ("tests_effect", "lightbus_django_processedevent", "lightbus_django_failedevent"):
        postgresql.query(f"DELETE FROM {table} RETURNING 1")
    return read


@pytest.fixture
def killed(manage, postgresql):
    """Run a worker until it kills itself at a point."""

    def run(at):
        process = manage(*LISTEN, KILL_AT=at, **postgresql.urls)
        output, _ = process.communicate(timeout=30)
        assert process.returncode == -signal.SIGKILL, output

    return run


@pytest.fixture
def burst(manage, postgresql):
    """Run a worker until nothing is left to do."""

    def run():
        process = manage(*LISTEN, "--burst", **postgresql.urls)
        output, _ = process.communicate(timeout=30)
        assert process.returncode == 0, output
        print(output)

    return run


@pytest.fixture
def events(r):
    for number in range(EVENTS):
        fire("shop.parcel_delivered", number=number)
    return list(range(EVENTS))


def test_what_is_about_to_be_acknowledged_is_durable(events, killed, crash, handled):
    killed("commits durable")
    done = handled()
    assert done
    crash()
    assert handled() == done


def test_so_is_what_a_process_committed_that_died_before(events, killed, crash, handled):
    """Its keys are found, not inserted; nobody made them durable."""
    killed("transaction committed")
    done = handled()
    assert len(done) > 1
    killed("commits durable")
    crash()
    assert handled()[: len(done)] == done


def test_what_was_lost_is_handled_again_and_once(events, killed, crash, handled, burst, pending):
    killed("transaction committed")
    assert handled()
    crash()
    burst()
    assert handled() == events
    assert pending("price-monitor-fragile") == 0
