"""Runs scenarios: their subjects in turn, round by round, each run in a process of its own."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import redis

from . import machine
from .cores import on_core_of
from .databases import ROOT, Databases, environment
from .measures import Sample
from .results import Result, Row
from .scenario import Competitor, Scenario, Subject
from .servers import Unavailable
from .venvs import COMPETITORS, python_for

TIMEOUT = 1800.0
"""Seconds that a run may take, besides the minutes that it is told to."""

SHOWN = 12
"""How many lines are shown of what a run said that failed."""


class SubjectFailed(Exception):
    """A run ended with an error, or did not count right."""


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    rounds: int = 5
    scale: float = 1.0
    smoke: bool = False
    minutes: float | None = None
    """How long a run under load takes, if not as long as its scenario says."""

    def rounds_of(self, scenario: Scenario) -> int:
        return 1 if self.smoke else scenario.rounds or self.rounds

    def options(self, scenario: Scenario, subject: Subject) -> dict[str, Any]:
        """Return what a subject is run with."""
        options = {"events": scenario.events, **subject.options}
        if self.smoke:
            return {name: min(value, scenario.smoke.get(name, value)) for name, value in options.items()}
        if self.minutes and "minutes" in options:
            options["minutes"] = self.minutes
        return {**options, "events": max(1, round(options["events"] * self.scale))}


class Runner:
    """Runs subjects against one Redis and the databases that they need."""

    def __init__(self, plan: Plan, redis_url: str, databases: Databases, venvs: Path) -> None:
        self.plan = plan
        self.redis_url = redis_url
        self.databases = databases
        self.venvs = venvs

    def run(self, scenario: Scenario, database: str | None) -> Iterator[Result]:
        """Run a scenario on a database; yield what came of it so far, after each run.

        A subject that fails has no further turns.

        Raises:
            Unavailable: the database is not to be had.
        """
        url = self.databases.url(database or "sqlite")
        result = Result(
            scenario=scenario.name,
            title=scenario.title,
            database=database,
            reference=scenario.reference,
            measures=scenario.measures,
            targets=tuple(target for target in scenario.targets if target.database in (None, database)),
            rows=[Row(subject.key, subject.label, []) for subject in scenario.subjects],
            machine=machine.describe(self.redis_url, url if (database or "").startswith("postgres") else None),
            command=f"python -m benchmarks {shlex.join(sys.argv[1:])}",
            date=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        for subject in self._turns(scenario):
            row = result.row(subject.key)
            if not row.failure:
                try:
                    row.samples.append(self.run_once(subject, self.plan.options(scenario, subject), url))
                except (SubjectFailed, Unavailable) as error:
                    row.failure = str(error)
            yield result

    def _turns(self, scenario: Scenario) -> Iterator[Subject]:
        """Yield the subjects round by round, there and back, so that none profits from its place."""
        for number in range(self.plan.rounds_of(scenario)):
            yield from scenario.subjects[:: -1 if number % 2 else 1]

    def run_once(self, subject: Subject, options: dict[str, Any], database_url: str) -> Sample:
        """Run a subject once; raises SubjectFailed."""
        command = self._command(subject, options)
        with redis.Redis.from_url(self.redis_url) as client:
            client.flushdb()
        with on_core_of("measured"):
            try:
                process = subprocess.run(
                    command,
                    cwd=ROOT,
                    env=os.environ if isinstance(subject, Competitor) else environment(database_url, self.redis_url),
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    text=True,
                    check=False,
                    timeout=TIMEOUT + 60 * options.get("minutes", 0),
                )
            except subprocess.TimeoutExpired as error:
                raise SubjectFailed(str(error)) from None
        if process.returncode:
            said = (process.stdout + process.stderr).splitlines()
            raise SubjectFailed("\n".join([shlex.join(command), *said[-SHOWN:]]))
        try:
            sample: Sample = json.loads(process.stdout.splitlines()[-1])
        except (IndexError, ValueError):
            raise SubjectFailed(f"{shlex.join(command)}\nprinted no sample: {process.stdout[-1000:]}") from None
        return sample

    def _command(self, subject: Subject, options: dict[str, Any]) -> list[str]:
        events = f"--events={options['events']}"
        if isinstance(subject, Competitor):
            script = str(COMPETITORS / f"{subject.key}.py")
            return [str(python_for(subject.key, self.venvs)), script, subject.run, f"--url={self.redis_url}", events]
        words = [f"{name}={json.dumps(value)}" for name, value in options.items() if name != "events"]
        return [sys.executable, "-m", "benchmarks.subject", subject.run, events, *words]
