"""Which core is whose: the servers on one, the measured process on another, so that neither takes the other's time."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

Role = Literal["servers", "measured"]

_VARIABLE = "BENCHMARKS_CORES"
"""How the processes that are started here get to know what was shared out: `{servers},{measured}`."""


def share_out() -> bool:
    """Give the servers one core and the measured process another; return False where that can't be done."""
    if not hasattr(os, "sched_setaffinity") or len(cores := sorted(os.sched_getaffinity(0))) < 2:
        return False
    os.environ[_VARIABLE] = f"{cores[0]},{cores[1]}"
    return True


@contextmanager
def on_core_of(role: Role) -> Iterator[None]:
    """Keep this thread, and the processes that it starts meanwhile, on the core of `role`."""
    if not (shared := os.environ.get(_VARIABLE)):
        yield
        return
    servers, measured = map(int, shared.split(","))
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {servers if role == "servers" else measured})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
