"""An event is acknowledged after its handling is committed, and by nothing else. So whatever ends a
process, kill -9 included, its events are handled: by itself when it comes back under its name, else by
another process once the acknowledgement timeout is over.
"""

import signal

from lightbus_django import fire
from lightbus_django.models import FailedEvent
from tests.conftest import eventually


def test_a_process_that_comes_back_under_its_name_first_handles_what_it_left(manage, effects, pending, tmp_path):
    died = tmp_path / "died"
    process = manage("lightbus_listen", "--process-name", "web")
    fire("shop.parcel_delivered", number=1, dies=True, once=str(died))
    assert process.wait(30) == -signal.SIGKILL
    fire("shop.parcel_delivered", number=2)
    assert effects("fragile") == []
    assert pending("price-monitor-fragile") == 1

    # The acknowledgement timeout is a minute: nothing here waits for it.
    manage("lightbus_listen", "--process-name", "web")
    eventually(lambda: effects("fragile") == [1, 2], seconds=20)


def test_else_another_process_takes_over_after_the_timeout(manage, effects, tmp_path):
    died = tmp_path / "died"
    quick = {"LIGHTBUS_ACKNOWLEDGEMENT_TIMEOUT": "1", "LIGHTBUS_RECLAIM_INTERVAL": "0.2"}
    process = manage("lightbus_listen", "--process-name", "web-1", **quick)
    fire("shop.parcel_delivered", number=1, dies=True, once=str(died))
    assert process.wait(30) == -signal.SIGKILL
    manage("lightbus_listen", "--process-name", "web-2", **quick)
    eventually(lambda: effects("fragile") == [1])


def test_an_event_that_kills_each_process_is_set_aside_and_its_neighbours_are_handled(manage, effects):
    """With MAX_ATTEMPTS=3 it has three lives to take."""
    for number in range(5):
        fire("shop.parcel_delivered", number=number, dies=number == 2)
    for _ in range(3):
        process = manage("lightbus_listen", "--process-name", "web", "--burst", LIGHTBUS_MAX_ATTEMPTS="3")
        assert process.wait(30) == -signal.SIGKILL
    process = manage("lightbus_listen", "--process-name", "web", "--burst", LIGHTBUS_MAX_ATTEMPTS="3")
    assert process.wait(30) == 0
    assert effects("fragile") == [0, 1, 3, 4]
    failed = FailedEvent.objects.get()
    assert "its process died, or exceeded the timeout, 3 times while handling it" in failed.error


def test_a_process_of_several_that_is_killed_is_started_again_under_its_name(manage, effects, tmp_path, r):
    process = manage("lightbus_listen", "--processes", "2", "--process-name", "web")
    fire("shop.parcel_delivered", number=1, dies=True, once=str(tmp_path / "died"))
    eventually(lambda: effects("fragile") == [1])
    assert {row["name"] for row in r.xinfo_consumers("shop.*:stream", "price-monitor-fragile")} <= {"web-1", "web-2"}
    assert process.poll() is None


def test_processes_end_with_their_parent(manage, r):
    def blocked():
        return [row for row in r.client_list() if row["cmd"] == "xreadgroup"]

    process = manage("lightbus_listen", "--processes", "2")
    eventually(lambda: len(blocked()) == 4)
    process.kill()
    eventually(lambda: not blocked())


def test_processes_that_cannot_start_end_their_parent_with_an_error(manage):
    process = manage("lightbus_listen", "--processes", "2", LIGHTBUS_STREAM_USE="nonsense")
    output, _ = process.communicate(timeout=30)
    assert process.returncode != 0
    assert "STREAM_USE" in output
