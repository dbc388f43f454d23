"""`python -m benchmarks.subject NAME --events N [OPTION=VALUE ...]`: one run of one subject, in a process of its own.

The servers are those of LIGHTBUS_URL and DATABASE_URL; the tables of the latter are emptied. The last line of the
output is a sample, in JSON. The exit code is 1 if what was done is not what was to be measured.
"""

import argparse
import contextlib
import importlib
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import django

from .subjects import Miscounted


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.subject", description=__doc__)
    parser.add_argument("name", help="a function below benchmarks.subjects, such as consuming.ours")
    parser.add_argument("--events", type=int, required=True)
    parser.add_argument("options", nargs="*", metavar="OPTION=VALUE", help="what the function takes; values are JSON")
    arguments = parser.parse_intermixed_args()
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "benchmarks.settings")
    django.setup()
    options = {name: _value(text) for name, _, text in (option.partition("=") for option in arguments.options)}
    empty_tables()
    try:
        sample = find(arguments.name)(arguments.events, **options)
    except Miscounted as error:
        sys.exit(f"{arguments.name}: {error}")
    print(json.dumps(sample))


def find(name: str) -> Callable[..., dict[str, Any]]:
    """Return the function below `benchmarks.subjects`."""
    module, _, function = name.rpartition(".")
    found: Callable[..., dict[str, Any]] = getattr(importlib.import_module(f"benchmarks.subjects.{module}"), function)
    return found


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def empty_tables() -> None:
    """Begin as all the others do, with empty tables and nothing left to write from the run before."""
    from django.apps import apps
    from django.db import DatabaseError, connection

    tables = [connection.ops.quote_name(model._meta.db_table) for model in apps.get_models()]
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(f"TRUNCATE {', '.join(tables)} RESTART IDENTITY")
            with contextlib.suppress(DatabaseError):  # not everybody may
                cursor.execute("CHECKPOINT")
        else:
            for table in tables:
                cursor.execute(f"DELETE FROM {table}")
    connection.close()  # a subject may fork


if __name__ == "__main__":
    main()
