"""Settings of all processes of a chaos run: short times, so that much can go wrong in a minute."""

from tests.settings import *  # noqa: F403
from tests.settings import INSTALLED_APPS, LIGHTBUS, env

CHAOS_SEED = env("CHAOS_SEED", default="0")
CHAOS_SABOTAGE = env("CHAOS_SABOTAGE", default="")

DEBUG = False  # else every query is kept
INSTALLED_APPS = [*(app for app in INSTALLED_APPS if app != "tests.app"), "tests.chaos"]
LIGHTBUS = {
    **LIGHTBUS,
    "SERVICE_NAME": "chaos",
    "STREAM_USE": "per_api",
    "ACKNOWLEDGEMENT_TIMEOUT": 2.0,
    "RECLAIM_INTERVAL": 0.5,
    "RETRY_BACKOFF": 1.0,
    # We kill processes and connections all the time; that an event is set aside for it is another test's matter.
    "MAX_ATTEMPTS": 50,
}
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s.%(msecs)03d %(levelname)s %(message)s", "datefmt": "%H:%M:%S"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": "INFO"},
}
