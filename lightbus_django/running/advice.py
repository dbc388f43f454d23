"""Hints for the log: what to do about an error, put in parentheses after its text."""

import re
import traceback
from typing import Any

from lightbus_django.exceptions import BusError, BusForbidden, BusFull, BusUnsupported, SequenceBehind

# SQLSTATE codes of PostgreSQL, error numbers of MySQL, error texts of SQLite.
_ADVICE = (
    (
        {"42P01", "42703", 1146, 1054},
        r"no such (table|column)|has no column",
        "a table or a column is missing; run manage.py migrate for this database",
    ),
    ({"42501", 1044, 1142, 1143, 1227}, r"$.", "grant the missing privilege to the database user"),
    ({"53100", 1021, 1114}, r"disk is full", "the database server's disk is full; free some space"),
    (
        {"25006", 1290, 1792, 1836},
        r"readonly database",
        "the database is read-only; check whether it is a replica, and the permissions of its file",
    ),
)


def advice(error: Exception) -> str:
    """Return what to do about a database error, or an empty string if that is unknown."""
    origin = _origin(error)
    code: Any = getattr(origin, "sqlstate", None) or getattr(origin, "pgcode", None) or next(iter(origin.args), None)
    for codes, text, what in _ADVICE:
        if (isinstance(code, (str, int)) and code in codes) or re.search(text, str(origin)):
            return f" ({what})"
    return ""


def not_an_outage(error: Exception) -> str:
    """Return why an error that persists is not an outage, or an empty string if its own text says what to do."""
    if isinstance(error, (BusForbidden, BusUnsupported, BusFull, SequenceBehind)):
        return ""
    if isinstance(error, BusError):
        return " (Redis answers other commands, so this is not an outage)"
    frames = traceback.extract_tb(_origin(error).__traceback__)
    where = f"; raised in {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f" (the database answers other queries, so this is not an outage{where})"


def _origin(error: Exception) -> Exception:
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error
