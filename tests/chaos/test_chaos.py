"""The harness for a minute, as a test; the long run, and what it showed, is in docs/reliability.md."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

from .processes import process_group
from .report import CLUSTER_HEAD, HEAD, add_row

on_postgresql = pytest.mark.skipif(
    not os.environ.get("DATABASE_URL", "").startswith("postgres"),
    reason="chaos runs on PostgreSQL, and DATABASE_URL names none",
)

UNAVAILABLE = 77


def chaos(directory: Path, *arguments: str) -> tuple[int, dict[str, str], str]:
    """Run the harness, its logs in a directory; return its exit code, the row of its result, and all its output."""
    process = subprocess.run(
        [sys.executable, "-m", "tests.chaos", *arguments],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(directory)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=300,
    )
    if process.returncode == UNAVAILABLE:
        pytest.skip(process.stdout)
    [row] = [line for line in process.stdout.splitlines() if line.startswith("| ")] or [""]
    head = CLUSTER_HEAD if "--cluster" in arguments else HEAD
    return process.returncode, dict(zip(head, row.strip("| ").split(" | "), strict=False)), process.stdout


@on_postgresql
def test_nothing_is_lost_and_nothing_doubled(tmp_path):
    # At this rate the storm lasts for long enough on any machine.
    code, row, output = chaos(tmp_path, "--events", "1000", "--rate", "60", "--seed", "20", "--pause", "0.5")
    print(output)
    assert code == 0
    assert row["events"] == "1,000"
    assert {row[name] for name in HEAD[-7:]} == {"0"}
    # It was a storm.
    for name in ("worker_kills", "worker_stops", "Redis_ends", "connection_kills", "producer_deaths"):
        assert row[name] != "0", name


@on_postgresql
def test_though_the_database_crashes(tmp_path):
    code, row, output = chaos(tmp_path, "--crashes", "--events", "400", "--rate", "30", "--seed", "20", "--pause", "1")
    print(output)
    assert code == 0
    assert {row[name] for name in HEAD[-7:]} == {"0"}
    assert row["database_crashes"] != "0"


@on_postgresql
def test_on_a_cluster(tmp_path):
    code, row, output = chaos(
        tmp_path, "--cluster", "--events", "200", "--rate", "25", "--seed", "20", "--pause", "0.5"
    )
    print(output)
    assert code == 0
    assert {row[name] for name in CLUSTER_HEAD[-7:]} == {"0"}
    # Masters were replaced, and slots moved.
    assert any(row[name] != "0" for name in ("failovers", "master_kills", "master_freezes"))
    assert row["migrations"] != "0"
    assert row["fire_alone"] != "0"


@on_postgresql
def test_a_harness_that_can_fail(tmp_path):
    """Without idempotency keys it counts doubles. What else `--sabotage` breaks is for people to try."""
    code, row, output = chaos(tmp_path, "--events", "200", "--seed", "20", "--pause", "0.3", "--sabotage", "keys")
    print(output)
    assert code == 1
    assert row["doubled"] != "0"
    assert row["lost"] == row["ghosts"] == "0"


def test_what_is_left_in_the_group_ends_with_it():
    with process_group() as group:
        left = subprocess.Popen(["sleep", "600"], process_group=group)
    assert left.wait(timeout=30) == -9


def test_a_row_for_the_page_on_reliability(tmp_path):
    page = tmp_path / "reliability.md"
    page.write_text((ROOT / "docs" / "reliability.md").read_text())
    lines = page.read_text().splitlines()
    head = lines.index(f"| {' | '.join(name.replace('_', ' ') for name in HEAD)} |")
    rest = lines[lines.index("", head) :]
    row = f"| {' | '.join('7' * len(HEAD))} |"
    add_row(page, row)
    lines = page.read_text().splitlines()
    end = lines.index("", head)
    assert lines[end - 1] == row
    assert lines[end:] == rest
    assert not [line for line in lines[head:end] if "…" in line]
