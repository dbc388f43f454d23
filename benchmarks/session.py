"""One run of the command: which scenarios, on which databases; what is shown meanwhile and in the end."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from . import report, results
from .results import Result
from .runner import Runner
from .scenario import Scenario
from .servers import Unavailable


class Session:
    """Runs scenarios one after the other; what is done is kept, though a later one fails."""

    def __init__(self, runner: Runner, output: Path | None, console: Console) -> None:
        self.runner = runner
        self.output = output
        self.console = console
        self.done: list[Result] = []

    def run(self, scenarios: Sequence[Scenario], database: str | None) -> bool:
        """Run scenarios, those for several databases on `database` if one is named; return whether none failed."""
        turns = [(scenario, where) for scenario in scenarios for where in _databases(scenario, database)]
        columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
        # Shown anew once a second only: it takes time of the servers' core.
        with Progress(*columns, console=self.console, refresh_per_second=1) as progress:
            task = progress.add_task("", total=sum(self._runs(scenario) for scenario, _ in turns))
            for scenario, where in turns:
                try:
                    for result in self.runner.run(scenario, where):
                        progress.update(task, description=result.name, advance=1)
                except Unavailable as error:
                    progress.update(task, advance=self._runs(scenario))
                    progress.console.print(f"SKIPPED: {scenario.name} on {where}: {error}", soft_wrap=True)
                    continue
                self._keep(result)
        for result in self.done:
            self.console.print(_counts(result) if self.runner.plan.smoke else report.table(result))
        return not any(row.failure for result in self.done for row in result.rows)

    def _runs(self, scenario: Scenario) -> int:
        return self.runner.plan.rounds_of(scenario) * len(scenario.subjects)

    def _keep(self, result: Result) -> None:
        self.done.append(result)
        for row in result.rows:
            if row.failure:
                self.console.print(f"[red]FAILED: {result.name}: {row.key}[/]: {row.failure}", soft_wrap=True)
        if self.output:
            results.write(result, self.output)


def _counts(result: Result) -> str:
    """Return what there is to say where nothing was measured."""
    right = [row.key for row in result.rows if not row.failure]
    return f"{result.name}: {len(right)} of {len(result.rows)} subjects counted right: {', '.join(right)}"


def _databases(scenario: Scenario, database: str | None) -> Sequence[str | None]:
    if len(scenario.databases) > 1 and database:
        return [database]
    return scenario.databases or [None]
