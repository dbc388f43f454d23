from typing import Any

from django.core.management.base import CommandParser

from lightbus_django.management.base import LightbusCommand
from lightbus_django.management.output import current_user, reporting_errors
from lightbus_django.operating.pausing import pause


class Command(LightbusCommand):
    help = (
        "Let a listener rest in all processes of this service. Its events wait, and nothing is lost. lightbus_resume "
        "ends the pause."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("listener", nargs="+", help="name of a listener, or of its consumer group")
        parser.add_argument("--by", default="", help="who asks for it, for others to see (the user of this shell)")

    def handle(self, **options: Any) -> None:
        with reporting_errors(self.stdout):
            for name in options["listener"]:
                has_paused = pause(name, options["by"] or f"{current_user()} (lightbus_pause)")
                self.stdout.write(f"{name} rests within seconds." if has_paused else f"{name} is paused already.")
