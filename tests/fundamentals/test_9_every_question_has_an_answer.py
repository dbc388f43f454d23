"""Records tell what happened to each event: who has handled it, who has not, and why."""

import os
import signal

import pytest
from django.core.management import CommandError, call_command

from lightbus_django import fire, on_commit
from lightbus_django.models import FailedEvent, ProcessedEvent
from lightbus_django.operating.outcomes import DEAD_LETTER, HANDLED, IN_HAND, RETRYING, WAITING
from lightbus_django.operating.status import read_status
from lightbus_django.operating.story import tell
from tests.conftest import eventually

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


def outcome_of(event):
    (outcome,) = tell(event.id).outcomes
    return outcome


def test_the_story_of_an_event(manage, effects, tmp_path):
    started = tmp_path / "started"
    handled = on_commit("shop.parcel_delivered", number=1)
    failing = on_commit("shop.parcel_delivered", number=2, fails=True)
    in_hand = on_commit("shop.parcel_delivered", number=3, sleep=12, once=str(started))
    waiting = on_commit("shop.parcel_delivered", number=4)
    assert outcome_of(handled).state == WAITING

    worker = manage("lightbus_listen", "--process-name", "web-1")
    eventually(started.exists)
    assert outcome_of(handled).state == HANDLED
    assert "Handled by web-1" in outcome_of(handled).text
    assert outcome_of(failing).state == RETRYING
    assert "number 2 fails" in outcome_of(failing).text
    eventually(lambda: "running the handler" in outcome_of(in_hand).text)
    assert outcome_of(in_hand).state == outcome_of(waiting).state == IN_HAND
    FailedEvent.objects.update(next_attempt_at=None)
    assert outcome_of(failing).state == DEAD_LETTER
    worker.kill()


def test_the_state_of_the_service(manage, effects):
    """A worker shows that it is alive. One that hangs, was frozen or killed does not."""
    fire("shop.parcel_delivered", number=1)
    worker = manage("lightbus_listen", "--process-name", "web-1")
    eventually(lambda: [process.is_healthy for process in read_status().processes] == [True])
    call_command("lightbus_status", "--check", "--process", "web-1")
    os.kill(worker.pid, signal.SIGTERM)
    assert worker.wait(30) == 0
    with pytest.raises(CommandError, match="process web-1 has no heartbeat"):
        call_command("lightbus_status", "--check", "--process", "web-1")


def test_the_proof_that_every_event_reached_every_listener(manage, effects, capsys):
    for number in range(20):
        on_commit("shop.parcel_delivered", number=number)
    assert manage("lightbus_listen", "--process-name", "web-1", "--burst").wait(30) == 0
    call_command("lightbus_verify", "--since", "1h")

    lost = ProcessedEvent.objects.first()
    lost.delete()  # as if it had never been handled
    with pytest.raises(CommandError, match="1 events are missing"):
        call_command("lightbus_verify", "--since", "1h", "--listener", "fragile")
    assert lost.event_id in capsys.readouterr().out
    call_command("lightbus_verify", "--since", "1h", "--replay")
    assert manage("lightbus_listen", "--process-name", "web-1", "--burst").wait(30) == 0
    call_command("lightbus_verify", "--since", "1h")
