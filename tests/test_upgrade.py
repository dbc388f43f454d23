"""A rolling upgrade: workers of the previous version beside new ones, with the same events in hand."""

import subprocess
import sys

import pytest
from django.db import connection

from lightbus_django import fire, fire_many
from lightbus_django.models import FailedEvent, ProcessedEvent
from lightbus_django.operating.editing import edit_and_retry, with_payload
from lightbus_django.operating.retrying import latest_outcomes
from lightbus_django.operating.status import read_status
from tests.app.models import Effect
from tests.conftest import ROOT, eventually, process_environment

PREVIOUS = {
    "40cdbf5": "events share a transaction",
    "3b1313d": "processes have no heartbeat",
    "5726210": "retries belong to no request",
    "33ae123": "retries in hand are not marked",
}
"""The last commits of earlier versions, and what was different then."""

KEY = "shop.*:stream"
GROUP = "price-monitor-book"
EVENTS = 300

START = """
import runpy, sys
sys.path.insert(0, {folder!r})
sys.argv = ["manage.py", "lightbus_listen", "--listener", "book", "--process-name", "old"]
runpy.run_path("manage.py", run_name="__main__")
"""


@pytest.fixture(params=[pytest.param(commit, id=difference) for commit, difference in PREVIOUS.items()])
def old_worker(request, tmp_path, lightbus_url, r, transactional_db):
    """A worker of an earlier version, on the tests' servers."""
    archive = tmp_path / "previous.tar"
    packed = subprocess.run(
        ["git", "archive", f"--output={archive}", request.param, "lightbus_django"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if packed.returncode:
        pytest.skip(f"no commit {request.param} here")
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
    named = [process.name for process in status.processes]
    assert sorted(named + status.silent_consumers) == ["new", "old"]
    assert "new" in named
    assert next(each for each in status.listeners if each.name == "book").problems == []
    new.kill()
    for log in (old_worker.read_text(), new.communicate(timeout=30)[0]):
        assert "ERROR" not in log
        if connection.vendor == "postgresql":
            assert "deadlock" not in log


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
def test_an_old_worker_records_failures_and_retries_what_a_person_edited(old_worker, r):
    eventually(lambda: r.exists(KEY) and r.xinfo_consumers(KEY, GROUP), seconds=60)
    event_id = fire("shop.order_placed", number="three").id
    eventually(lambda: FailedEvent.objects.filter(next_attempt_at=None).exists(), seconds=60)
    failed = FailedEvent.objects.get()
    assert (failed.retry_request, failed.is_edited) == (None, False)
    edit_and_retry(failed, with_payload(failed, {"number": 3}).fields, "default", "ada")
    eventually(Effect.objects.exists, seconds=60)
    eventually(lambda: not FailedEvent.objects.exists())
    assert Effect.objects.get().number == 3
    assert ProcessedEvent.objects.get(event_id=event_id).edited_by == "ada"
    assert latest_outcomes("default")[0].text == "1 retried: 1 done, 0 failed again"
