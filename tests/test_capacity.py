"""The calculator: its arithmetic, and that docs/capacity.md shows what it prints."""

from pathlib import Path

import pytest

from benchmarks.capacity import calculator, figures, page, report
from benchmarks.capacity.calculator import Machines, Workload
from benchmarks.capacity.command import main, output, parser
from benchmarks.capacity.figures import Cost, Figures, Size

FIGURES = Figures(
    machine={"Python": "3.11"},
    command="python -m benchmarks capacity --measure",
    date="2026-03-01T12:00:00+00:00",
    fire=Cost(python=50, redis=10),
    on_commit=Cost(python=200, redis=20, postgresql=100),
    handle=Cost(python=300, redis=5, postgresql=200),
    handle_without_inbox=Cost(python=10, redis=4),
    delete=Cost(python=10, postgresql=20),
    stream=Size(small=200, large=1_100),
    outbox=Size(small=500, large=1_400),
    inbox=300,
    failed=Size(small=3_000, large=3_900),
    confirmation=100,
)
A_THOUSAND_A_SECOND = 86_400_000


def workload(**options: float) -> Workload:
    return Workload(**{"events_per_day": A_THOUSAND_A_SECOND, "peak": 2, "payload": 100, **options})


def test_cores() -> None:
    need = calculator.needs(workload(listeners=3), FIGURES, use=0.5)
    assert (need.mean, need.peak) == (1_000, 2_000)
    assert need.firing_cores == pytest.approx(2_000 * 200e-6 / 0.5)
    assert need.worker_cores == pytest.approx(2_000 * 3 * 300e-6 / 0.5)
    assert need.worker_processes == 4
    assert need.redis_cores == pytest.approx(2_000 * (20 + 3 * 5) * 1e-6 / 0.5)
    assert need.postgresql_cores == pytest.approx(2_000 * (100 + 3 * 200) * 1e-6 / 0.5)
    assert need.deleting_cores == pytest.approx(1_000 * (1 + 3) * 20e-6)


def test_shares() -> None:
    need = calculator.needs(workload(on_commit=0.25, inbox=0.5, listeners=2, handler=1), FIGURES, use=1)
    assert need.firing_cores == pytest.approx(2_000 * (0.25 * 200 + 0.75 * 50) * 1e-6)
    assert need.worker_cores == pytest.approx(2_000 * (1 * 300 + 1 * 10 + 2 * 1_000) * 1e-6)
    assert need.redis_cores == pytest.approx(2_000 * (0.25 * 20 + 0.75 * 10 + 1 * 5 + 1 * 4) * 1e-6)
    assert need.postgresql_cores == pytest.approx(2_000 * (0.25 * 100 + 1 * 200) * 1e-6)


def test_bytes() -> None:
    need = calculator.needs(workload(payload=300, listeners=2, failed=0.01, stream_retention=0.5), FIGURES, use=1)
    assert need.stream == pytest.approx(A_THOUSAND_A_SECOND * 0.5 * 400)
    assert need.outbox == pytest.approx(A_THOUSAND_A_SECOND * 7 * 700)
    assert need.inbox == pytest.approx(A_THOUSAND_A_SECOND * 2 * 30 * 300)
    assert need.failed == pytest.approx(A_THOUSAND_A_SECOND * 2 * 0.01 * 90 * 3_200)
    assert need.confirmations == pytest.approx(2_000 * 100)
    assert (need.outbox_rows, need.inbox_rows) == (A_THOUSAND_A_SECOND * 7, A_THOUSAND_A_SECOND * 60)


def test_connections() -> None:
    assert calculator.database_connections(processes=4, threads=8, listeners=30) == 36
    assert calculator.database_connections(processes=4, threads=30, listeners=30) == 124
    assert calculator.database_connections(processes=2, threads=8, listeners=3) == 8
    assert calculator.redis_connections(processes=4, threads=8, listeners=30) == 52


def test_partitions_are_worth_it_where_deleting_takes_much() -> None:
    assert not calculator.needs(workload(events_per_day=1e7), FIGURES, use=1).wants_partitions
    assert calculator.needs(workload(events_per_day=1e9), FIGURES, use=1).wants_partitions


def test_what_is_reached_first() -> None:
    machines = Machines(use=1, redis_memory=86.4, postgresql_cores=3, postgresql_disk=2_851.2, connections=18)
    reached = calculator.limits(workload(failed=0), FIGURES, machines)
    expected = {
        "one worker process": 1_000 / 0.6,
        "one core of Redis": 1_000 / 0.05,
        "the cores of PostgreSQL": 1_000 * 3 / 0.6,
        "the disk of PostgreSQL": 1_000 * 2_851.2 / (86.4 * (7 * 0.5 + 30 * 0.3)),
        "deleting old rows one by one": 1_000 * 0.05 / 0.04,
        "connections of PostgreSQL: 9 processes": 1_000 * 9 / 0.6,
    }
    memory = 86.4e9 / (86_400 * 200 + 2 * 100)
    found = {limit.what: limit.events_per_day / 86_400 for limit in reached}
    assert found == pytest.approx({**expected, "the memory of Redis": memory})
    assert reached == sorted(reached)


def test_figures_are_kept(tmp_path: Path) -> None:
    figures.write(FIGURES, tmp_path / "figures.json")
    assert figures.read(tmp_path / "figures.json") == FIGURES


def test_what_is_printed() -> None:
    text = report.describe(workload(listeners=3), FIGURES, Machines())
    assert text.startswith("86,400,000 events a day: 1,000/s on average, 2,000/s at the peak\n")
    assert "workers     3.0 cores: 3 processes\n" in text
    assert "inbox: 7,776,000,000 rows, 2.3 TB for 30 days\n" in text
    assert "Redis       0.1 cores: a single server\n" in text
    assert "partitions: by day, see docs/partitioning.md\n" in text
    assert text.endswith(
        "\n\nCalculated with figures of 2026-03-01, `python -m benchmarks capacity --measure`: Python 3.11."
    )
    rows = [line.split() for line in report.describe_figures(FIGURES).splitlines()]
    assert "on_commit 5,000 50,000 10,000".split() in rows
    assert "fire 20,000 100,000 -".split() in rows
    assert "row of the outbox 500 1,400".split() in rows


def test_what_is_passed_already_is_marked() -> None:
    machines = Machines(use=1, redis_memory=8.64)
    lines = report.describe(workload(), FIGURES, machines).splitlines()
    (memory,) = (line for line in lines if "the memory of Redis;" in line)
    (redis,) = (line for line in lines if "one core of Redis;" in line)
    assert "already passed: the memory of Redis;" in memory
    assert "already passed" not in redis


def test_a_node_for_what_a_server_does_not_hold() -> None:
    text = report.describe(workload(), FIGURES, Machines(redis_memory=4))
    assert "a cluster of 5 masters with 4 GB" in text


def test_the_page_shows_what_is_printed() -> None:
    text = page.PAGE.read_text()
    assert text.count("$ python -m benchmarks capacity") == 3
    assert page.updated(text, lambda words: output(parser().parse_args(words))) == text


def test_a_page_is_updated() -> None:
    text = "a\n```console\n$ python -m benchmarks capacity --figures\nold\nlines\n```\nb\n```console\n$ other\n```\n"
    assert page.updated(text, " ".join) == text.replace("old\nlines", "--figures")


def test_the_command_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(figures, "PATH", tmp_path / "none.json")
    assert main(["--events-per-day", "1e9"]) == 1
    assert "no measured figures yet" in capsys.readouterr().out
