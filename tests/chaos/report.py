"""The row of a run in the table of results, in Markdown."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .harness import Outcome

HEAD = (
    "seed events seconds events/s worker_kills worker_stops worker_freezes Redis_ends Redis_freezes "
    "connection_kills silences database_crashes producer_deaths lost doubled ghosts out_of_order handled_out_of_order "
    "dead_letters troubles"
).split()


CLUSTER_HEAD = (
    "seed events seconds events/s worker_kills worker_stops worker_freezes failovers master_kills master_freezes "
    "migrations connection_kills silences producer_deaths restored fire_alone fire_alone_lost "
    "lost doubled ghosts out_of_order handled_out_of_order dead_letters troubles"
).split()
"""Of runs on a cluster."""


def markdown_row(seed: str, outcome: "Outcome", head: Sequence[str] = HEAD) -> str:
    """The cells of a head."""
    mischief, fates, verdict = outcome.mischief, outcome.fates, outcome.verdict
    cells = {
        "seed": seed,
        "events": verdict.sent,
        "seconds": round(outcome.seconds),
        "events/s": round(verdict.sent / outcome.seconds),
        "worker_kills": mischief["kill worker"],
        "worker_stops": mischief["stop worker"],
        "worker_freezes": mischief["freeze worker"],
        "Redis_ends": mischief["restart redis"] + mischief["kill redis"],
        "Redis_freezes": mischief["freeze redis"],
        "failovers": mischief["fail over master"],
        "master_kills": mischief["kill master"],
        "master_freezes": mischief["freeze master"],
        "migrations": mischief["migrate slot"],
        "connection_kills": mischief["kill connections"],
        "silences": mischief["silence connections"],
        "database_crashes": mischief["crash postgresql"] + mischief["kill postgresql"] + mischief["kill backend"],
        "producer_deaths": mischief["kill producer"] + deaths(fates),
        "restored": outcome.restored,
        "fire_alone": verdict.alone,
        "fire_alone_lost": verdict.alone_lost,
        **dict(zip(HEAD[-7:-1], map(len, verdict.wrong.values()), strict=True)),
        "troubles": len(outcome.troubles),
    }
    return f"| {' | '.join(f'{cells[name]:,}' if name != 'seed' else seed for name in head)} |"


def deaths(fates: Counter[str]) -> int:
    return sum(count for fate, count in fates.items() if fate.startswith("dies"))


def add_row(path: Path, row: str, names: Sequence[str] = HEAD) -> None:
    """Add a row to the table of results in a file; a last row of dots gives way to it."""
    lines = path.read_text().splitlines() if path.exists() else []
    head = f"| {' | '.join(name.replace('_', ' ') for name in names)} |"
    if head not in lines:
        lines += [head, "|---" * len(names) + "|"]
    end = lines.index(head)
    while end < len(lines) and lines[end].startswith("|"):
        end += 1
    lines.insert(end, row)
    if lines[end - 1].startswith("| …"):
        del lines[end - 1]
    path.write_text("\n".join(lines) + "\n")
