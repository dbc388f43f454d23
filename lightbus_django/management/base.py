"""What all commands have in common."""

import os
import sys
from typing import Any

from django.core.management.base import BaseCommand

BROKEN_PIPE = 141
"""Exit code if the reader of the output has gone, as in `… | head`: as a shell shows it if SIGPIPE ended a program."""


class LightbusCommand(BaseCommand):
    """A command that needs no checks but ours, and ends quietly when the reader of its output has gone."""

    requires_system_checks = ("lightbus",)  # Django 6.1 looks at the database for others

    def execute(self, *args: Any, **options: Any) -> Any:
        try:
            result = super().execute(*args, **options)
            sys.stdout.flush()
        except BrokenPipeError:
            _drop_output()
            sys.exit(BROKEN_PIPE)
        return result


def _drop_output() -> None:
    """Let what is left to be written go nowhere, or Python would complain about it at the end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
