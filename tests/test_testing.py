"""Tests of projects never reach a real bus by accident; each kind of test run is a process of its own here."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from lightbus_django.bus import sandbox
from tests.conftest import ROOT

PYTEST = """
import asyncio, threading
from decimal import Decimal

import pytest
import redis
from django.conf import settings
from django.core.management import CommandError, call_command
from django.db import transaction
from django.test import TestCase

from lightbus_django import ConfigurationError, afire, afire_many, aon_commit, fire, fire_many, listens_to, on_commit
from lightbus_django.listening.registry import registry
from lightbus_django.models import OutboxEvent, ProcessedEvent
from lightbus_django.testing import EventTestMixin, fired, real_bus

REAL = settings.LIGHTBUS["URL"]

@listens_to("shop.order_placed", listener_name="here", start="beginning")
def here(event, number):
    on_commit("shop.order_booked", number=number)

def names():
    return [event.name for event in fired]

def keys():
    with redis.Redis.from_url(settings.LIGHTBUS["URL"], decode_responses=True) as client:
        return set(client.keys())

def test_fire():
    event = fire("shop.order_placed", number=1, total=Decimal("9.99"))
    assert [event.id for event in fired] == [event.id]
    assert fired[0].payload == {"number": 1, "total": "9.99"}
    assert event.stream_id == fired[0].stream_id
    assert fired[0].published_at.year > 2000

def test_fire_many():
    assert fired == []
    fire_many(("shop.order_placed", {"number": number}) for number in range(3))
    assert [event.payload["number"] for event in fired] == [0, 1, 2]

def test_async():
    asyncio.run(afire("shop.order_placed", number=1))
    asyncio.run(afire_many([("shop.order_placed", {"number": 1})]))
    assert len(fired) == 2

def test_threads():
    thread = threading.Thread(target=fire, args=["shop.order_placed"])
    thread.start()
    thread.join()
    assert names() == ["shop.order_placed"]

@pytest.mark.django_db
def test_a_transaction_that_does_not_commit(django_capture_on_commit_callbacks):
    on_commit("shop.order_placed", number=1)
    assert fired == []
    with django_capture_on_commit_callbacks(execute=True):
        on_commit("shop.order_placed", number=2)
    assert [event.payload for event in fired] == [{"number": 2}]
    assert [row.published_at is None for row in OutboxEvent.objects.order_by("pk")] == [True, False]

@pytest.mark.django_db(transaction=True)
def test_a_transaction_that_commits():
    with transaction.atomic():
        on_commit("shop.order_placed", number=1)
    asyncio.run(aon_commit("shop.order_placed", number=2))
    with pytest.raises(ValueError), transaction.atomic():
        on_commit("shop.order_placed", number=3)
        raise ValueError
    assert [event.payload["number"] for event in fired] == [1, 2]
    assert not OutboxEvent.objects.exclude(due_at=None).exists()

@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("arguments", [
    ["lightbus_listen", "--burst"], ["lightbus_listen"], ["lightbus_listen", "--processes=2"],
    ["lightbus_retire"], ["lightbus_retire", "x"], ["lightbus_prune"],
])
def test_commands(arguments):
    with pytest.raises(CommandError, match="real_bus"):
        call_command(*arguments)

@pytest.mark.lightbus
@pytest.mark.django_db(transaction=True)
def test_the_marker():
    assert settings.LIGHTBUS["URL"] != REAL
    fire("shop.order_placed", number=1)
    call_command("lightbus_listen", "--burst")
    assert fired == []
    assert "shop.*:stream" in keys()
    assert ProcessedEvent.objects.filter(consumer_group="price-monitor-here").count() == 1
    assert OutboxEvent.objects.get().published_at

def test_a_context_manager():
    with real_bus() as url:
        assert settings.LIGHTBUS["URL"] == url
        fire("shop.order_placed", number=1)
        assert keys() == {"shop.*:stream"}
    assert settings.LIGHTBUS["URL"] == REAL
    fire("shop.order_placed", number=1)
    assert len(fired) == 1

def test_a_server_of_ones_own():
    with real_bus() as url, real_bus(url) as same:
        assert same == url
        fire("shop.order_placed", number=1)
        assert keys()
    fire("shop.order_placed", number=1)
    assert len(fired) == 1

@real_bus()
def test_a_decorator():
    fire("shop.order_placed", number=1)
    assert fired == []

@real_bus()
async def asynchronous():
    await afire("shop.order_placed", number=1)

def test_an_async_decorator():
    asyncio.run(asynchronous())
    assert fired == []

class TestInAClass(TestCase):
    def test_one(self):
        fire("shop.order_placed", number=1)
        self.assertEqual(len(fired), 1)
    test_two = test_one
"""

UNITTEST = """
from django.core.management import call_command
from django.test import SimpleTestCase, TestCase, TransactionTestCase
from lightbus_django import fire, on_commit
from lightbus_django.testing import EventTestMixin, fired, real_bus

class FireTests(EventTestMixin, SimpleTestCase):
    def setUp(self): pass
    def test_one(self):
        fire("shop.order_placed", number=1)
        self.assertEqual(len(fired), 1)
    test_two = test_one

class CommitTests(EventTestMixin, TestCase):
    def test_one(self):
        with self.captureOnCommitCallbacks(execute=True):
            on_commit("shop.order_placed", number=1)
            self.assertEqual(fired, [])
        self.assertEqual(len(fired), 1)
    test_two = test_one

class TransactionTests(EventTestMixin, TransactionTestCase):
    def test_one(self):
        on_commit("shop.order_placed", number=1)
        self.assertEqual(len(fired), 1)
    test_two = test_one

@real_bus()
class RealTests(EventTestMixin, SimpleTestCase):
    def test_one(self):
        fire("shop.order_placed", number=1)
        self.assertEqual(fired, [])
    test_two = test_one

class WithoutMixinTests(SimpleTestCase):
    def test_one(self):
        fire("shop.order_placed", number=1)
        self.assertTrue(fired)
"""

SETTINGS = """
from tests.settings import *
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
"""

PLUGIN = "lightbus_django.pytest_plugin"


@pytest.fixture
def run(tmp_path: Path, lightbus_url: str, r: redis.Redis) -> Callable[..., str]:
    """Run Python in a directory with tests; return its output. Its LIGHTBUS names the real bus of these tests."""
    (tmp_path / "inner_settings.py").write_text(SETTINGS)
    (tmp_path / "test_events.py").write_text(PYTEST)
    (tmp_path / "unit").mkdir()
    (tmp_path / "unit" / "test_unit.py").write_text(UNITTEST)
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nDJANGO_SETTINGS_MODULE = inner_settings\naddopts = --strict-markers"
    )

    def run(*arguments: str) -> str:
        environment = {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "inner_settings",
            "LIGHTBUS_URL": lightbus_url,
            "PYTHONPATH": f"{tmp_path}:{ROOT}",
        }
        process = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=120,
        )
        assert process.returncode == 0, process.stdout
        return process.stdout

    return run


def test_pytest(run: Callable[..., str], r: redis.Redis) -> None:
    assert "passed" in run("-m", "pytest", "-p", PLUGIN, "test_events.py", "unit")
    assert not r.keys()


def test_pytest_without_the_plugin(run: Callable[..., str], r: redis.Redis) -> None:
    """Nothing clears the list then, but nothing reaches the bus either."""
    run("-m", "pytest", "-p", f"no:{PLUGIN}", "-o", "addopts=", "test_events.py", "-k", "test_threads or test_commands")
    assert not r.keys()


def test_pytest_while_it_collects(run: Callable[..., str], tmp_path: Path, r: redis.Redis) -> None:
    (tmp_path / "test_events.py").write_text(
        textwrap.dedent(
            """
            from lightbus_django import fire
            fire("shop.order_placed", number=1)
            def test(): ...
            """
        )
    )
    run("-m", "pytest", "-p", PLUGIN, "test_events.py")
    assert not r.keys()


@pytest.mark.parametrize("options", [[], ["--parallel=2"]], ids=" ".join)
def test_the_test_runner_of_django(options: list[str], run: Callable[..., str], r: redis.Redis) -> None:
    assert "Ran 9 tests" in run("-m", "django", "test", "unit", *options)
    assert not r.keys()


def test_a_process_that_runs_no_tests_reaches_the_bus(run: Callable[..., str], r: redis.Redis) -> None:
    """Not even one that sends its mails into a list, which makes a django.core.mail.outbox, is taken for a test."""
    program = """
        import django; django.setup()
        from django.core.mail import send_mail
        from django.test import override_settings
        with override_settings(EMAIL_BACKEND="django.core.mail.backends.locmem.EmailBackend"):
            send_mail("subject", "message", "me@example.com", ["you@example.com"])
        from lightbus_django import fire
        fire("shop.order_placed", number=1)
    """
    run("-c", textwrap.dedent(program))
    assert r.xlen("shop.*:stream") == 1


def test_this_is_how_django_says_that_it_runs_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    from django.test import utils

    assert hasattr(utils._TestState, "saved_data")
    monkeypatch.setattr(sandbox, "real_buses", [])
    monkeypatch.setattr(sandbox, "is_pytest", False)
    assert sandbox.keeps_events()
    monkeypatch.delattr(utils._TestState, "saved_data")
    assert not sandbox.keeps_events()
