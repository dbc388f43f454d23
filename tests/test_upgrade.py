"""A rolling upgrade: workers of the previous version beside new ones, with the same events in hand."""

import subprocess
import sys

import pytest
from django.db import connection

from lightbus_django import fire_many
from lightbus_django.models import FailedEvent, ProcessedEvent
from lightbus_django.operating.status import read_status
from tests.app.models import Effect
from tests.conftest import ROOT, eventually, process_environment

PREVIOUS = "40cdbf5"
"""The last commit in which events share a transaction."""

KEY = "shop.*:stream"
GROUP = "price-monitor-book"
EVENTS = 300

START = """
import runpy, sys
sys.path.insert(0, {folder!r})
sys.argv = ["manage.py", "lightbus_listen", "--listener", "book", "--process-name", "old"]
runpy.run_path("manage.py", run_name="__main__")
"""


@pytest.fixture
def old_worker(tmp_path, lightbus_url, r, transactional_db):
    """A worker of the previous version, on the tests' servers."""
    archive = tmp_path / "previous.tar"
    packed = subprocess.run(
        ["git", "archive", f"--output={archive}", PREVIOUS, "lightbus_django"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if packed.returncode:
        pytest.skip(f"no commit {PREVIOUS} here")
    subprocess.run(["tar", "-xf", str(archive), "-C", str(tmp_path)], check=True)
    with (tmp_path / "old.log").open("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", START.format(folder=str(tmp_path))],
            cwd=ROOT,
            env=process_environment(lightbus_url),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        yield tmp_path / "old.log"
        process.kill()
        process.wait(30)


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
def test_old_and_new_workers_share_events_and_handle_each_once(old_worker, manage, r):
    new = manage("lightbus_listen", "--listener", "book", "--process-name", "new")
    eventually(lambda: r.exists(KEY) and len(r.xinfo_consumers(KEY, GROUP)) == 2, seconds=60)
    fire_many(("shop.order_placed", {"number": number}) for number in range(EVENTS))
    for _, fields in r.xrange(KEY):  # as when they are published again
        r.xadd(KEY, fields)

    eventually(lambda: (group := r.xinfo_groups(KEY)[0])["pending"] == 0 and group["lag"] == 0, seconds=60)

    assert sorted(Effect.objects.values_list("number", flat=True)) == list(range(EVENTS))
    assert ProcessedEvent.objects.count() == EVENTS
    assert not FailedEvent.objects.exists()
    status = read_status()
    assert status.silent_consumers == ["old"]
    assert [process.name for process in status.processes] == ["new"]
    assert next(each for each in status.listeners if each.name == "book").problems == []
    new.kill()
    for log in (old_worker.read_text(), new.communicate(timeout=30)[0]):
        assert "ERROR" not in log
        if connection.vendor == "postgresql":
            assert "deadlock" not in log
