import os
import signal

from django.apps import AppConfig


class TestsConfig(AppConfig):
    name = "tests.app"
    label = "tests"

    def ready(self) -> None:
        if point := os.environ.get("KILL_AT"):
            from . import kill_points

            kill_points.arm(point, signal.Signals[os.environ.get("KILL_WITH", "SIGKILL")])
