import subprocess
import sys

import lightbus_django
from lightbus_django import exceptions


def test_the_public_names_are_these():
    assert lightbus_django.__all__ == [
        "BusError",
        "BusUnavailable",
        "ConfigurationError",
        "EventMessage",
        "InvalidEvent",
        "InvalidEventName",
        "InvalidPayload",
        "LightbusError",
        "UnreadableEvent",
        "afire",
        "afire_many",
        "aon_commit",
        "aon_commit_many",
        "fire",
        "fire_many",
        "listens_to",
        "on_commit",
        "on_commit_many",
    ]
    for name in lightbus_django.__all__:
        assert getattr(lightbus_django, name).__doc__


def test_every_error_is_a_lightbus_error():
    for error in vars(exceptions).values():
        if isinstance(error, type):
            assert issubclass(error, exceptions.LightbusError)


def test_the_package_is_imported_before_django_is_set_up():
    """As an app's `listeners.py` or `models.py` may do; nothing is read or connected then."""
    code = "import lightbus_django; lightbus_django.listens_to('a.b', listener_name='c')(lambda event: None)"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
