import os
import shlex
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.test.utils import override_settings
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from example_project.demo import (
    DATABASE,
    MANAGE,
    Bus,
    Tally,
    Worker,
    count_waiting,
    crawl,
    create_superuser,
    forget_publishing,
    prepare_database,
    sqlite_url,
    tallies,
)
from lightbus_django.embedded import embedded_server
from lightbus_django.exceptions import LightbusError

FORGOTTEN = 200
"""How many events the crawler publishes without noting that it did."""

PATIENCE = 60
"""Seconds without any progress after which we give up."""

console = Console()


class Command(BaseCommand):
    help = "Fire price changes, let things go wrong half-way, and count what was lost or had its effects twice."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--events", type=int, default=5000, metavar="N", help="price changes to fire (5000)")

    def handle(self, *, events: int, **options: Any) -> None:
        if events < 2:
            raise CommandError("--events must be 2 or more.")
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that our children end with us then, too
        own_database = "DATABASE_URL" not in os.environ
        try:
            prepare_database()
            with embedded_server() as url, worker_log() as log:
                outcome = Demo(events, url, log).run()
                console.print(table(outcome))
                create_superuser("demo", "demo")
                show_admin(own_database)
                if outcome.problems:
                    raise CommandError(f"The demo failed: {'; '.join(outcome.problems)}.")
        except LightbusError as error:
            raise CommandError(str(error)) from error
        except KeyboardInterrupt:
            raise CommandError("Interrupted.", returncode=130) from None


class Outcome(NamedTuple):
    """What became of the price changes."""

    fired: int
    tallies: dict[str, Tally]
    in_hand: int
    published_again: int
    seconds: float
    troubles: list[str]

    @property
    def redelivered(self) -> int:
        return self.in_hand + self.published_again * len(self.tallies)

    @property
    def lost(self) -> int:
        return sum(self.fired - tally.changes for tally in self.tallies.values())

    @property
    def doubled(self) -> int:
        return sum(tally.rows - tally.changes for tally in self.tallies.values())

    @property
    def problems(self) -> list[str]:
        counts = {"lost": self.lost, "effects doubled": self.doubled}
        return [f"{count:,} {what}" for what, count in counts.items() if count] + self.troubles


class Demo:
    """Two workers, a crawler, and their accidents."""

    def __init__(self, events: int, url: str, log: IO[bytes]) -> None:
        self.events = events
        self.bus = Bus(url)
        self.crawler_settings = {**settings.LIGHTBUS, "URL": url, "SERVICE_NAME": "price-crawler"}
        self.workers = [Worker("monitor-1", url, log), Worker("monitor-2", url, log)]
        self.progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
        )
        self.fired = self.progress.add_task("price changes fired", total=events)
        self.handled = self.progress.add_task("handled by two listeners", total=2 * events)

    def run(self) -> Outcome:
        victim, other = self.workers
        with override_settings(LIGHTBUS=self.crawler_settings), victim, other, self.progress:
            if not self.wait_for(self.count_starting, 0):
                raise CommandError("The workers do not start.")
            started = time.monotonic()
            in_hand = self.fire(victim)
            settled = self.wait_for(self.left, (0, 0, 0))
            seconds = time.monotonic() - started
            self.wait_for(self.count_starting, 0)  # what has just been started anew can't end well yet
            codes = {worker.name: worker.stop() for worker in self.workers}
        troubles = [f"{name} ended with code {code}" for name, code in codes.items() if code]
        if not settled:
            troubles.append("to publish, handle and acknowledge are left {:,}, {:,} and {:,}".format(*self.left()))
        return Outcome(self.events, tallies(), in_hand, self.bus.published() - self.events, seconds, troubles)

    def fire(self, victim: Worker) -> int:
        """Fire all price changes; return how many deliveries the victim had in hand when it was killed."""
        with ThreadPoolExecutor() as pool:
            for change in crawl(self.events):
                self.progress.advance(self.fired)
                if change == self.events // 2:
                    count = forget_publishing(FORGOTTEN)
                    self.say(f"As if the crawler had died, {count} published events wait in the outbox again.")
                    in_hand = pool.submit(self.kill, victim)
                if change % 50 == 0:
                    self.show_handled()
        return in_hand.result()

    def kill(self, victim: Worker) -> int:
        in_hand = victim.kill_when_busy(self.bus)
        self.say(f"Deliveries in hand of {victim.name}: {in_hand}. It is killed, and started again.")
        return in_hand

    def left(self) -> tuple[int, int, int]:
        """Count what is left to publish, to handle and to acknowledge."""
        # In this order, which is that of an event's way: none slips past us from one count to the next.
        return count_waiting(), 2 * self.events - self.show_handled(), self.bus.unfinished()

    def show_handled(self) -> int:
        handled = sum(tally.changes for tally in tallies().values())
        self.progress.update(self.handled, completed=handled)
        return handled

    def say(self, text: str) -> None:
        self.progress.console.print(text, highlight=False)

    def count_starting(self) -> int:
        """Count the workers that don't listen yet."""
        return sum(not worker.listens(self.bus) for worker in self.workers)

    def wait_for(self, look: Callable[[], object], wanted: object) -> bool:
        """Look again and again; return whether the wanted is seen before a worker ends or nothing changes any more."""
        seen, changed_at = look(), time.monotonic()
        while seen != wanted:
            if time.monotonic() - changed_at > PATIENCE or not all(worker.is_running for worker in self.workers):
                return False
            time.sleep(0.1)
            before, seen = seen, look()
            if seen != before:
                changed_at = time.monotonic()
        return True


@contextmanager
def worker_log() -> Iterator[IO[bytes]]:
    """Yield a file for the output of the workers; if the block fails, the file's end is shown."""
    with tempfile.TemporaryFile("a+b") as log:
        try:
            yield log
        except Exception:
            log.seek(0)
            for line in deque(log, maxlen=30):
                console.print(line.decode().rstrip(), style="dim", markup=False, highlight=False, soft_wrap=True)
            raise


def table(outcome: Outcome) -> Table:
    table = Table("", "", "", box=box.SIMPLE, show_header=False)
    table.columns[1].justify = "right"
    table.add_row("fired", f"{outcome.fired:,}", "price changes, each in its own transaction")
    for listener_name, tally in outcome.tallies.items():
        table.add_row("handled", f"{tally.changes:,}", f"by {listener_name}")
    twice = f"{len(outcome.tallies)} x {outcome.published_again:,} published twice"
    table.add_row("redelivered", f"{outcome.redelivered:,}", f"{outcome.in_hand:,} in hand at the kill, {twice}")
    table.add_section()
    table.add_row("lost", verdict(outcome.lost), "changes for which a listener has no row")
    table.add_row("effects doubled", verdict(outcome.doubled), "rows beyond one for each change")
    table.add_section()
    table.add_row("seconds", f"{outcome.seconds:.1f}", "from the first change to the last acknowledgement")
    table.add_row("events/s", f"{outcome.fired / outcome.seconds:,.0f}", "each handled by both listeners")
    return table


def verdict(count: int) -> str:
    return f"[bold {'red' if count else 'green'}]{count:,}"


def show_admin(own_database: bool) -> None:
    """Print how to look at what happened."""
    command = shlex.join([shown(Path(sys.executable)), shown(MANAGE), "runserver"])
    if own_database:
        command = f"DATABASE_URL={shlex.quote(sqlite_url(shown(DATABASE)))} {command}"
    else:  # we don't print what may hold a password
        command += "  # with the DATABASE_URL of now"
    console.print("Look at it in the admin, as user [bold]demo[/] with password [bold]demo[/]:\n", highlight=False)
    console.print(f"  {command}", markup=False, highlight=False, soft_wrap=True)
    console.print("  http://127.0.0.1:8000/admin/\n", highlight=False)


def shown(path: Path) -> str:
    """Return the path from the current directory if it is below that."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
