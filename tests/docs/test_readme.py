"""The README's five minutes: its Python blocks run, in order, and the event arrives."""

import re

import pytest

from lightbus_django import listens_to
from tests.conftest import ROOT, drain

pytestmark = pytest.mark.django_db(transaction=True)


def test_five_minutes(r, listeners, consume, capsys):
    settings, listening, firing = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    names: dict[str, object] = {}
    exec(settings, names)
    assert names["LIGHTBUS"]["SERVICE_NAME"] == "price-monitor"
    module = {"__name__": "prices.listeners"}
    exec(listening, module)
    consumer = consume()
    exec(firing, {"__name__": "prices.views"})
    drain(consumer)
    assert re.fullmatch(r"A-1 costs 9.99 since 20\d\d-.*\n", capsys.readouterr().out)
    assert module["listens_to"] is listens_to


def test_both_commands_are_environments_of_tox():
    commands = re.findall(r"^python3 -m venv .venv .* -e (\w+)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert commands == ["demo", "py"]
    assert "[testenv:demo]" in (ROOT / "tox.ini").read_text()
