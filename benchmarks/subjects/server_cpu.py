"""CPU time that the servers take, if they run on this machine."""

import os
from pathlib import Path

from django.db import connection

from .events import connect

TICKS = os.sysconf("SC_CLK_TCK")


class Servers:
    """The processes of Redis and of PostgreSQL, if the database is one."""

    def __init__(self) -> None:
        self._roots = {"redis": int(connect().info("server")["process_id"])}
        if connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_backend_pid()")
                self._roots["postgresql"] = _parent(cursor.fetchone()[0])

    def cpu_seconds(self) -> dict[str, float]:
        """Return the CPU time of each server so far, with that of its child processes, also of those that ended."""
        return {name: _seconds(pid) for name, pid in self._roots.items()}


def _parent(pid: int) -> int:
    return int(_stat(pid)[1])


def _seconds(pid: int) -> float:
    """Return the CPU time of a process, its ended children, and its running ones."""
    user, system, of_children, of_their_system = map(int, _stat(pid)[11:15])
    total = (user + system + of_children + of_their_system) / TICKS
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return total + sum(_own_seconds(int(child)) for child in children)


def _own_seconds(pid: int) -> float:
    try:
        return sum(map(int, _stat(pid)[11:13])) / TICKS
    except OSError:  # it has just ended
        return 0.0


def _stat(pid: int) -> list[str]:
    """Return the fields of a process after its name, which may contain anything."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
