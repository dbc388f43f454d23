"""The benchmarks start and count right; what they measure is for quiet machines."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from benchmarks.__main__ import wanted
from benchmarks.report import markdown
from benchmarks.results import Result, Row, Target, read, write
from tests.conftest import ROOT
from tests.servers import valkey

DATABASE = "postgres" if os.environ.get("DATABASE_URL", "").startswith("postgres") else "sqlite"

PARTS = 4
"""How many parts all scenarios are tried in, beside each other."""


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    process = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**{name: value for name, value in os.environ.items() if name != "LIGHTBUS_URL"}, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=500,
    )
    print(process.stdout)
    return process


@pytest.mark.parametrize("part", range(PARTS))
def test_all_subjects_count_right(part: int, tmp_path: Path) -> None:
    # On SQLite all of them; on PostgreSQL those in which it has a part.
    scenarios = [each for each in wanted([], smoke=True) if DATABASE == "sqlite" or DATABASE in each.databases]
    scenarios = scenarios[part::PARTS]
    options = [f"--database={DATABASE}", f"--redis-server={valkey()}", f"--output={tmp_path}"]

    done = python("-m", "benchmarks", *(each.name for each in scenarios), "--smoke", *options)

    assert done.returncode == 0
    results = read(tmp_path)
    expected = {each.name for each in scenarios if DATABASE in (each.databases or (DATABASE,))}
    assert expected
    assert expected <= {item.scenario for item in results}
    assert all(len(row.samples) == 1 for item in results for row in item.rows)


def test_a_subject_that_does_not_count_right_fails(r: redis.Redis, lightbus_url: str, tmp_path: Path) -> None:
    r.xadd("prices.*:stream", {"": ""})
    database = f"sqlite:///{tmp_path}/db.sqlite3"
    environment = {
        "DATABASE_URL": database,
        "LIGHTBUS_URL": lightbus_url,
        "DJANGO_SETTINGS_MODULE": "benchmarks.settings",
    }
    python("-m", "django", "migrate", "--run-syncdb", "-v0", **environment)

    run = python("-m", "benchmarks.subject", "consuming.ours", "--events=10", "idempotent=false", **environment)

    assert run.returncode == 1
    assert run.stdout.endswith("consuming.ours: 11 events are in the stream, not 10\n")


def sample(seconds: float) -> dict[str, float]:
    return {"events": 1000, "seconds": seconds, "cpu_seconds": seconds / 2}


@pytest.fixture
def result() -> Result:
    """Three rounds; in each the machine is of another speed."""
    return Result(
        scenario="consume",
        title="Consuming",
        database="sqlite",
        reference="bare",
        measures=("rate", "cpu_cost"),
        targets=(Target(at_least=0.75), Target(measure="cpu_cost", kind="value", at_most=10.0)),
        rows=[
            Row("ours", "ours", [sample(1.25), sample(0.025), sample(0.1)]),
            Row("bare", "a bare loop", [sample(1.0), sample(0.02), sample(0.05)]),
        ],
        machine={"Python": "3.11"},
        command="python -m benchmarks consume",
        date="2026-03-01T12:00:00+00:00",
    )


def test_rounds_are_compared_one_by_one(result: Result) -> None:
    ours = result.rows[0]
    assert ours.spread("rate") == pytest.approx((10_000, 800, 40_000))
    assert result.compared(ours, "rate", "ratio") == pytest.approx((0.8, 0.5, 0.8))
    assert result.compared(ours, "cpu_cost", "difference") == pytest.approx((25, 2.5, 125))
    assert [met for _, met in result.verdicts(ours)] == [True, False]


def test_a_subject_that_failed_is_no_comparison(result: Result) -> None:
    result.rows[1].samples.clear()
    assert result.comparisons == []
    assert "| a bare loop | failed |" in markdown([result], "plots")


def test_what_was_written_is_reported(result: Result, tmp_path: Path) -> None:
    write(result, tmp_path)

    text = markdown(read(tmp_path), "plots")

    assert text == markdown([result], "plots")
    assert "| ours | 10,000 (800 to 40,000) | 50.0 | 0.80 (0.50 to 0.80) |" in text
    assert "≥ 0.75: met; CPU ≤ 10 µs per event: MISSED |" in text
    assert "![consume-sqlite](plots/consume-sqlite.svg)" in text
    assert "`python -m benchmarks consume`, medians of 3 rounds" in text


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = python("-m", "benchmarks", "--report", str(tmp_path / "results"))
    assert done.returncode == 2
    assert f"there is no folder {tmp_path / 'results'}" in done.stdout
