"""`lightbus_status --check` as a probe of real processes: idle, paused, hanging, frozen, without a database."""

import json
import os
import signal
import subprocess
import sys

import pytest
from django.core.management import call_command

from lightbus_django import fire
from tests.conftest import ROOT, eventually, process_environment

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])

WELL = {"ok": True, "reasons": [], "paused": []}


@pytest.fixture
def probe(lightbus_url):
    """Run the probe; return its JSON, and see that its exit code says the same."""

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, "manage.py", "lightbus_status", "--check", "--json", *arguments],
            cwd=ROOT,
            env=process_environment(lightbus_url),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        found = json.loads(done.stdout)
        assert done.returncode == (0 if found["ok"] else 1), done.stderr
        assert found["ok"] == (not found["reasons"]) == (not done.stderr)
        return found

    return run


@pytest.fixture
def start(manage, probe):
    """Start a process with the name web1, and wait until it is well."""

    def start(**environment):
        worker = manage("lightbus_listen", "--process-name=web1", **environment)
        eventually(lambda: probe("--process", "web1")["ok"])
        return worker

    return start


def test_one_that_is_idle_is_well_and_one_that_is_paused_says_so(start, probe):
    start()
    assert probe("--process", "web1") == WELL
    assert probe() == WELL
    call_command("lightbus_pause", "book", by="Ada")
    paused = {**WELL, "paused": ["price-monitor-book"]}
    assert eventually(lambda: probe("--process", "web1") == paused)
    assert probe()["reasons"] == ["listener book: paused by Ada"]
    assert probe("--process", "web2")["reasons"] == ["process web2 has no heartbeat"]
    call_command("lightbus_resume", "book")
    assert eventually(lambda: probe() == WELL)


def test_one_whose_thread_hangs_is_not_well(start, probe):
    start(LIGHTBUS_ACKNOWLEDGEMENT_TIMEOUT="2")
    fire("shop.parcel_delivered", number=1, sleep=60)

    def hangs(*arguments):
        return any("price-monitor-fragile hangs: running the handler" in each for each in probe(*arguments)["reasons"])

    assert eventually(lambda: hangs("--process", "web1"))
    assert hangs()


def test_one_that_is_frozen_is_not_well_until_it_goes_on(start, probe):
    worker = start()
    os.kill(worker.pid, signal.SIGSTOP)
    (reason,) = eventually(lambda: probe("--process", "web1")["reasons"], seconds=40)
    assert reason.startswith("process web1: no heartbeat for 1")
    os.kill(worker.pid, signal.SIGCONT)
    assert eventually(lambda: probe("--process", "web1") == WELL)


def test_one_that_cannot_reach_its_database_is_not_well_until_it_can(start, probe, postgresql):
    start(**postgresql.urls)
    postgresql.stop()
    fire("shop.order_placed", number=1)
    reasons = eventually(lambda: probe("--process", "web1")["reasons"], seconds=40)
    assert any("price-monitor-book is interrupted" in each or "default" in each for each in reasons)
    postgresql.start()
    assert eventually(lambda: probe("--process", "web1") == WELL, seconds=50)
