"""What the contenders share: the command line, the payloads, a stopwatch, and the line of JSON that each ends with.

A contender is a script, `NAME.py consume|fire --url redis://… --events N`, run by the Python of an environment that has
what NAME.txt asks for, with an empty Redis. `consume` publishes N events and then handles them all in one process;
`fire` publishes N events one after the other. The last line that it prints says what was timed,
`{"events": …, "seconds": …, "cpu_seconds": …}`. It ends with code 1 if it has not counted exactly N events.
"""

import argparse
import asyncio
import faulthandler
import inspect
import json
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

# Python looks for modules beside the script first, and the scripts are called like the tools that they import. So they
# import this module before any tool.
sys.path.remove(str(Path(__file__).parent))

# Seconds for each step of a race. A step that takes longer ends the script with code 1 and a traceback.
LIMIT = 120

Payload = dict[str, str | int]
Step = Callable[[], Awaitable[object] | object]


class Stopwatch:
    """Counts events, and times from the first call to the last one: all events but those of the first call.

    The last call calls `when_done`, in the thread that the handler has; a contender sets it to what ends its worker.
    """

    def __init__(self, expected: int) -> None:
        self.expected = expected
        self.count = 0
        self.when_done: Callable[[], object] = lambda: None

    def tick(self, events: int = 1) -> None:
        """Count so many events: in the first line of a handler, or behind a publication."""
        if not self.count:
            self._first = events
            self._start, self._cpu_start = time.perf_counter(), time.process_time()
        self.count += events
        if self.count == self.expected:
            self._end, self._cpu_end = time.perf_counter(), time.process_time()
            self.when_done()

    def result(self) -> dict[str, float]:
        return {
            "events": self.count - self._first,
            "seconds": self._end - self._start,
            "cpu_seconds": self._cpu_end - self._cpu_start,
        }


class Race:
    """One run of a contender, as the command line wants it."""

    def __init__(self) -> None:
        parser = argparse.ArgumentParser()
        parser.add_argument("action", choices=["consume", "fire"])
        parser.add_argument("--url", required=True)
        parser.add_argument("--events", type=int, required=True)
        arguments = parser.parse_args()
        self.action: str = arguments.action
        self.url: str = arguments.url
        self.stopwatch = Stopwatch(arguments.events)
        self.payloads = [payload(number) for number in range(1, arguments.events + 1)]

    def run(self, *, publish: Step, consume: Step, fire: Step, run_async: Callable[..., object] = asyncio.run) -> None:
        """Take the steps that the action has, and print what the stopwatch says.

        `publish` brings all payloads to Redis, as fast as the tool can. `consume` returns when its worker has ended.
        `fire` publishes the payloads one by one. The latter two make the stopwatch tick. `run_async` runs async steps.
        """
        for step in [publish, consume] if self.action == "consume" else [fire]:
            faulthandler.dump_traceback_later(LIMIT, exit=True)
            if inspect.iscoroutinefunction(step):
                run_async(step())
            else:
                step()
        faulthandler.cancel_dump_traceback_later()
        if self.stopwatch.count != self.stopwatch.expected:
            sys.exit(f"{self.stopwatch.count} of {self.stopwatch.expected} events were counted")
        print(json.dumps(self.stopwatch.result()))


def payload(number: int) -> Payload:
    return {"sku": "A-1", "price": "9.99", "number": number, "at": "2026-01-02T03:04:05.000678+00:00"}
