"""The row of a run in the table of results, in Markdown."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .harness import Outcome

HEAD = (
    "seed events seconds events/s worker_kills worker_stops worker_freezes Redis_ends Redis_freezes "
    "connection_kills silences database_crashes producer_deaths lost doubled ghosts out_of_order handled_out_of_order "
    "dead_letters troubles"
).split()


def markdown_row(seed: str, outcome: "Outcome") -> str:
    """The cells of HEAD."""
    mischief, fates, verdict = outcome.mischief, outcome.fates, outcome.verdict
    cells = [
        seed,
        verdict.sent,
        round(outcome.seconds),
        round(verdict.sent / outcome.seconds),
        mischief["kill worker"],
        mischief["stop worker"],
        mischief["freeze worker"],
        mischief["restart redis"] + mischief["kill redis"],
        mischief["freeze redis"],
        mischief["kill connections"],
        mischief["silence connections"],
        mischief["crash postgresql"] + mischief["kill postgresql"] + mischief["kill backend"],
        mischief["kill producer"] + deaths(fates),
        *map(len, verdict.wrong.values()),
        len(outcome.troubles),
    ]
    return f"| {' | '.join(f'{cell:,}' if isinstance(cell, int) else cell for cell in cells)} |"


def deaths(fates: Counter[str]) -> int:
    return sum(count for fate, count in fates.items() if fate.startswith("dies"))


def add_row(path: Path, row: str) -> None:
    """Add a row to the table of results in a file; a last row of dots gives way to it."""
    lines = path.read_text().splitlines() if path.exists() else []
    head = f"| {' | '.join(name.replace('_', ' ') for name in HEAD)} |"
    if head not in lines:
        lines += [head, "|---" * len(HEAD) + "|"]
    end = lines.index(head)
    while end < len(lines) and lines[end].startswith("|"):
        end += 1
    lines.insert(end, row)
    if lines[end - 1].startswith("| …"):
        del lines[end - 1]
    path.write_text("\n".join(lines) + "\n")
