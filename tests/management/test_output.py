"""What all commands share: JSON with nothing beside it, errors that name the way out, and no password in them."""

import json
import os
import subprocess
import sys

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from model_bakery import baker

from lightbus_django.management.base import BROKEN_PIPE
from lightbus_django.models import FailedEvent
from tests.conftest import ROOT, process_environment
from tests.operating.conftest import record as record

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
    pytest.mark.usefixtures("listeners", "r"),
]

WITH_JSON = [
    ["lightbus_status"],
    ["lightbus_status", "--check"],
    ["lightbus_status", "--check", "--process=web1"],
    ["lightbus_event", "01a2"],
    ["lightbus_verify", "--since=1h"],
    ["lightbus_failed", "list"],
    ["lightbus_failed", "retry", "--all"],
    ["lightbus_failed", "discard", "--all", "--reason=old", "--no-input"],
]
OTHERS = [
    ["lightbus_failed", "show", "01a2"],
    ["lightbus_pause", "book"],
    ["lightbus_resume", "book"],
    ["lightbus_retire"],
    ["lightbus_retire", "price-monitor-gone", "--no-input"],
    ["lightbus_prune"],
    ["lightbus_republish", "--since=1h"],
    ["lightbus_listen", "--burst"],
]
NO_REDIS = {"LIGHTBUS_URL": "redis://ada:s3cret@127.0.0.1:1/0"}
NO_DATABASE = {
    "DATABASE_URL": "sqlite:////nowhere/s3cret.sqlite3",
    "OTHER_DATABASE_URL": "sqlite:////nowhere/s3cret.sqlite3",
}


@pytest.fixture
def run(lightbus_url):
    """Run a command as a process; return exit code, output and error output."""

    def run(*arguments, **environment):
        done = subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=ROOT,
            env={**process_environment(lightbus_url), **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert "s3cret" not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        assert "\x1b" not in done.stdout + done.stderr
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.mark.parametrize("environment", [{}, NO_REDIS, NO_DATABASE], ids=["all well", "no redis", "no database"])
@pytest.mark.parametrize("arguments", WITH_JSON, ids=" ".join)
def test_json_has_nothing_beside_it_whatever_is_wrong(run, arguments, environment):
    code, output, errors = run(*arguments, "--json", **environment)
    found = json.loads(output)
    assert code in (0, 1)
    if code:
        assert errors.startswith("CommandError: ")
        assert "reasons" in found or found["error"] == errors.removeprefix("CommandError: ").rstrip()


@pytest.mark.parametrize("environment", [NO_REDIS, NO_DATABASE], ids=["no redis", "no database"])
@pytest.mark.parametrize("arguments", OTHERS, ids=" ".join)
def test_an_error_is_told_without_traceback_and_password(run, arguments, environment):
    code, _, errors = run(*arguments, **environment)
    assert (code == 1) == ("CommandError: " in errors)


def test_a_worker_waits_for_a_database_that_is_down_when_it_starts(manage):
    process = manage("lightbus_listen", **NO_DATABASE)
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "price-monitor-book: interrupted, retrying: database 'default'" in line:
            break
    process.terminate()
    output = "".join(lines) + process.communicate(timeout=60)[0]
    assert process.returncode == 0, output
    assert "Traceback" not in output
    assert output.endswith("stopped\n")


@pytest.mark.parametrize("arguments", [*WITH_JSON, *OTHERS], ids=" ".join)
def test_missing_tables_are_no_traceback(run, arguments, tmp_path):
    url = f"sqlite:///{tmp_path}/empty.sqlite3"
    code, output, errors = run(*arguments, DATABASE_URL=url, OTHER_DATABASE_URL=url)
    assert code in (0, 1, 2)
    if code and "--process=web1" not in arguments and arguments[0] != "lightbus_event":
        assert "migrate" in errors or "no process runs it" in errors or "no consumer group" in errors, (output, errors)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["lightbus_status", "--process", "web1"], "--process, --max-waiting and --max-dead go with --check"),
        (["lightbus_status", "--watch", "--json"], "leave out --check and --json"),
        (["lightbus_status", "--check", "--max-age=-1"], "argument --max-age: must be 0 or more"),
        (["lightbus_status", "--check", "--max-age=nan"], "argument --max-age: must be 0 or more"),
        (
            ["lightbus_failed", "list", "--listener=nobody"],
            "No listener and no failed event .* 'nobody'; known: record",
        ),
        (["lightbus_failed", "list", "--limit=0"], "argument --limit: must be 1 or more"),
        (["lightbus_verify", "--since=1h", "--until=2h"], "--until 2h is not after --since 1h"),
        (["lightbus_republish", "--since=1h", "--until=2h"], "--until 2h is not after --since 1h"),
        (
            ["lightbus_verify", "--since=1h", "--listener=nobody"],
            "^This service has no listener 'nobody'",
        ),
    ],
)
def test_wrong_arguments(record, arguments, problem):
    with pytest.raises(CommandError, match=problem):
        call_command(*arguments)


@pytest.mark.skipif(connection.vendor != "sqlite", reason="one database is enough")
@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize(
    ("arguments", "stream"),
    [
        (["lightbus_failed", "list"], "stdout"),  # a line
        (["lightbus_failed", "list", "--json"], "stdout"),
        (["lightbus_status"], "stdout"),  # a table
        (["lightbus_failed", "list", "--each", "--limit=1"], "stderr"),
    ],
    ids=str,
)
def test_a_command_ends_quietly_when_its_reader_has_gone(lightbus_url, arguments, stream, unbuffered):
    """As a program that SIGPIPE ends, in `manage.py lightbus_failed list | head`."""
    baker.make(FailedEvent, _quantity=2)
    reader, writer = os.pipe()
    os.close(reader)
    outputs = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: writer}
    command = [sys.executable, "manage.py", *arguments]
    environment = {**process_environment(lightbus_url), "PYTHONUNBUFFERED": unbuffered}
    with subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **outputs) as process:
        os.close(writer)
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors or "") == (BROKEN_PIPE, "")
    assert not output


@pytest.mark.skipif(connection.vendor != "sqlite", reason="one database is enough")
def test_help_reads_well(run):
    for name in ("status", "event", "verify", "failed", "pause", "resume", "retire", "prune", "republish", "listen"):
        code, output, _ = run(f"lightbus_{name}", "--help", COLUMNS="100")
        assert code == 0
        assert max(map(len, output.splitlines())) <= 100
