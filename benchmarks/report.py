"""Results as tables: on a terminal, and in Markdown."""

from collections.abc import Iterable

from rich.table import Table

from .measures import MEASURES
from .results import Result, Row, Spread


def head(result: Result) -> list[str]:
    """Return the titles of a result's columns."""
    titles = ["subject", *[MEASURES[measure].title for measure in result.measures]]
    for measure, kind in result.comparisons:
        what = "over" if kind == "difference" else "to"
        titles.append(f"{MEASURES[measure].name} {what} ({result.reference})".lstrip())
    return [*titles, "target"] if result.targets else titles


def cells(result: Result, row: Row) -> list[str]:
    """Return what a row has below each of these."""
    if not row.samples:
        return [row.label, "failed", *[""] * (len(head(result)) - 2)]
    first, *others = result.measures
    texts = [row.label, _show(row.spread(first), MEASURES[first].form)]
    texts += [format(row.spread(measure).median, MEASURES[measure].form) for measure in others]
    for measure, kind in result.comparisons:
        form = ".2f" if kind == "ratio" else MEASURES[measure].form
        texts.append("" if row.key == result.reference else _show(result.compared(row, measure, kind), form))
    if result.targets:
        texts.append("; ".join(f"{target}: {'met' if met else 'MISSED'}" for target, met in result.verdicts(row)))
    return texts


def _show(spread: Spread, form: str) -> str:
    median, low, high = (format(value, form) for value in spread)
    return median if low == high else f"{median} ({low} to {high})"


def title(result: Result) -> str:
    return f"{result.title} ({result.database})" if result.database else result.title


def table(result: Result) -> Table:
    """Return a result as a table for a terminal."""
    shown = Table(title=f"{result.name}: {title(result)}", title_justify="left")
    for number, text in enumerate(head(result)):
        shown.add_column(text, justify="right" if number else "left")
    for row in result.rows:
        missed = any(not met for _, met in result.verdicts(row))
        shown.add_row(*cells(result, row), style="red" if missed else None)
    return shown


def markdown(results: Iterable[Result], folder: str) -> str:
    """Return results as Markdown, with their plots in `folder`, and with what they were measured on."""
    parts = []
    runs: dict[str, list[str]] = {}
    machine: dict[str, list[str]] = {}
    for result in results:
        titles = head(result)
        rows = [titles, ["---", *["---:"] * (len(titles) - 1)], *[cells(result, row) for row in result.rows]]
        parts += [f"### {title(result)}", "\n".join(f"| {' | '.join(row)} |" for row in rows)]
        parts += [f"![{result.name}]({folder}/{result.name}.svg)"]
        runs.setdefault(_run(result), []).append(result.name)
        for name, value in result.machine.items():
            if value not in machine.setdefault(name, []):
                machine[name].append(value)
    parts += [f"{', '.join(names)}: {run}." for run, names in runs.items()]
    seen_on = ", ".join(f"{name} {' or '.join(values)}" for name, values in machine.items())
    return "\n\n".join([*parts, f"On {seen_on}."])


def _run(result: Result) -> str:
    rounds = f"medians of {result.rounds} rounds (and their range)" if result.rounds > 1 else "one round"
    return f"`{result.command}`, {rounds}, {result.date[:10]}"
