"""`lightbus_pause` and `lightbus_resume`."""

import pytest
from django.core.management import CommandError, call_command

from lightbus_django.management import output
from lightbus_django.models import ConsumerGroup
from tests.operating.conftest import record as record

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
    pytest.mark.usefixtures("listeners", "r"),
]


def test_they_say_what_they_did(record, consume, capsys):
    consume()
    for command, text in (
        ("lightbus_pause", "record rests within seconds."),
        ("lightbus_pause", "record is paused already."),
        ("lightbus_resume", "record goes on."),
        ("lightbus_resume", "record is not paused."),
    ):
        call_command(command, "record")
        assert capsys.readouterr().out == f"{text}\n"


def test_who_asked_is_recorded(record, consume, monkeypatch):
    consume()
    monkeypatch.setenv("LOGNAME", "ada")
    call_command("lightbus_pause", "record")
    assert ConsumerGroup.objects.get().paused_by == "ada (lightbus_pause)"
    call_command("lightbus_resume", "record")
    call_command("lightbus_pause", "record", "--by", "Grace")
    assert ConsumerGroup.objects.get().paused_by == "Grace"


@pytest.mark.parametrize("error", [KeyError("uid not found"), OSError("no username")])
def test_a_user_without_a_name_has_a_number(monkeypatch, error):
    def nameless():
        raise error

    monkeypatch.setattr(output.getpass, "getuser", nameless)
    assert output.current_user().startswith("user ")


@pytest.mark.parametrize("command", ["lightbus_pause", "lightbus_resume"])
def test_a_mistake_is_an_error(record, command):
    with pytest.raises(CommandError, match="no listener 'other'"):
        call_command(command, "other")
