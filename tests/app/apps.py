import os
import signal

from django.apps import AppConfig


class TestsConfig(AppConfig):
    name = "tests.app"
    label = "tests"

    def ready(self) -> None:
        from . import kill_points

        if point := os.environ.get("KILL_AT"):
            kill_points.arm(point, signal.Signals[os.environ.get("KILL_WITH", "SIGKILL")])
