from typing import Any

from django.core.management.base import CommandParser

from lightbus_django.management.base import LightbusCommand
from lightbus_django.management.output import reporting_errors
from lightbus_django.operating.pausing import resume


class Command(LightbusCommand):
    help = "End the pause of a listener. It goes on with the events that it had before."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("listener", nargs="+", help="name of a listener, or of its consumer group")

    def handle(self, **options: Any) -> None:
        with reporting_errors(self.stdout):
            for name in options["listener"]:
                self.stdout.write(f"{name} goes on." if resume(name) else f"{name} is not paused.")
