"""Arguments and terminal output that the commands share."""

import getpass
import os
import sys
from argparse import ArgumentTypeError
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, redirect_stdout
from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import Any

import msgspec
from django.core.management.base import CommandError, CommandParser
from django.db import Error as DatabaseError
from django.db import connections
from django.utils import timezone
from django.utils.dateparse import parse_datetime
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from lightbus_django.database.errors import one_line
from lightbus_django.events.times import as_aware, as_stored
from lightbus_django.exceptions import LightbusError
from lightbus_django.firing.databases import has_outbox, may_have_outbox
from lightbus_django.running.advice import advice


def database(text: str) -> str:
    """Return the alias of a database that may have an outbox; a type for argparse, which asks no database."""
    if text not in connections:
        raise ArgumentTypeError(f"{text!r} is not in settings.DATABASES; known: {', '.join(connections)}")
    if not may_have_outbox(text):
        raise ArgumentTypeError(f"the database router doesn't write to {text!r}")
    return text


def check_tables(alias: str) -> None:
    """Raise CommandError if a database does not have our tables."""
    if not has_outbox(alias):
        raise CommandError(f"{alias!r} has no tables of lightbus_django; run manage.py migrate --database {alias}")


def positive(text: str) -> int:
    """Return a number of 1 or more; a type for argparse."""
    if (number := int(text)) < 1:
        raise ArgumentTypeError("must be 1 or more")
    return number


def natural(text: str) -> int:
    """Return a number of 0 or more; a type for argparse."""
    if (number := int(text)) < 0:
        raise ArgumentTypeError("must be 0 or more")
    return number


def seconds(text: str) -> float:
    """Return a duration in seconds, 0 or more; a type for argparse."""
    if not (number := float(text)) >= 0:
        raise ArgumentTypeError("must be 0 or more")
    return number


@contextmanager
def reporting_errors(stream: Any, *, as_json: bool = False) -> Iterator[None]:
    """Raise CommandError instead of errors of the bus and the databases, with advice.

    Args:
        stream: the standard output of the command.
        as_json: write the error to the stream as well, as `{"error": "…"}`.
    """
    try:
        yield
    except (LightbusError, DatabaseError, CommandError) as error:
        text = str(error) if isinstance(error, CommandError) else one_line(error) + advice(error)
        if as_json:
            write_json(stream, {"error": text})
        raise CommandError(text) from error


def confirm(question: str) -> bool:
    """Ask for a confirmation, on the standard error output.

    Raises:
        CommandError: there is no terminal.
    """
    try:
        with redirect_stdout(sys.stderr):  # where `input` writes the question
            return input(f"{question} [y/N] ") == "y"
    except EOFError:
        raise CommandError("Can't ask for confirmation without a terminal; use --no-input.") from None


@contextmanager
def progress(stream: Any, what: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Show a progress bar if `stream` is a terminal; yield a function that advances it by a count."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(file=stream), transient=True, disable=not stream.isatty()) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)


def point_in_time(text: str) -> datetime:
    """Parse a time such as `2026-03-01T12:00`, or a duration before now such as `90m`, `12h` or `7d`.

    A time without a time zone is in the current one.

    Raises:
        CommandError
    """
    units = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
    try:
        if text[:-1].isdigit() and text[-1] in units:
            return timezone.now() - timedelta(**{units[text[-1]]: int(text[:-1])})
        time = parse_datetime(text)
    except (ValueError, OverflowError):
        time = None
    if time is None:
        raise CommandError(f"{text!r} is not a time: use 2026-03-01T12:00, or how long ago, such as 90m, 12h or 7d")
    return as_stored(timezone.make_aware(time) if timezone.is_naive(time) else time)


def add_span(parser: CommandParser, what: str) -> None:
    """Add the arguments `--since` and `--until`, whose values `point_in_time` parses; `what` they are about."""
    parser.add_argument(
        "--since",
        required=True,
        metavar="TIME",
        help=f"only {what} at or after this time: 2026-03-01T12:00 in settings.TIME_ZONE, 2026-03-01T12:00+01:00, or "
        "how long ago, such as 90m, 12h or 7d",
    )
    parser.add_argument("--until", metavar="TIME", help=f"only {what} before this time, given as with --since")


def span(options: dict[str, Any]) -> tuple[datetime, datetime]:
    """Return the values of `--since` and `--until`, which is now by default; aware, in UTC. Raises CommandError."""
    since, until = (
        datetime.now(UTC) if text is None else as_aware(point_in_time(text)).astimezone(UTC)
        for text in (options["since"], options["until"])
    )
    if since > datetime.now(UTC):
        raise CommandError(f"--since {options['since']} is in the future: {since.astimezone().isoformat()}.")
    if options["until"] is not None and until <= since:
        raise CommandError(f"--until {options['until']} is not after --since {options['since']}.")
    return since, until


def current_user() -> str:
    """Return the name of the user who runs the command; a container may have a user without a name."""
    try:
        return getpass.getuser()
    except (ImportError, KeyError, OSError):
        return f"user {os.getuid()}" if hasattr(os, "getuid") else "unknown"


def write_json(stream: Any, value: Any) -> None:
    """Write something that msgspec can encode as indented JSON."""
    stream.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # which LightbusCommand handles; recent versions of rich would exit with 1


def console(stream: Any) -> Console:
    """Return a console that writes plain text, wide enough for long names if the stream is not a terminal."""
    return _Console(file=stream, width=None if stream.isatty() else 200, no_color=True, markup=False)


def print_table(stream: Any, rows: Table) -> None:
    """Print a table without the blank line that it begins with: nothing is above it."""
    output = StringIO()
    width, is_terminal = console(stream).width, stream.isatty()
    Console(file=output, width=width, no_color=True, markup=False, force_terminal=is_terminal).print(rows)
    stream.write(output.getvalue().partition("\n")[2])


def table(*headings: str, right: Collection[str] = ()) -> Table:
    """Return a table; the columns named in `right` are numbers."""
    rows = Table(box=box.SIMPLE)
    for heading in headings:
        rows.add_column(heading, overflow="fold", justify="right" if heading in right else "left")
    return rows
