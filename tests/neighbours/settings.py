"""The settings of our own processes that have Lightbus beside them: those of the tests, and listeners.py here."""

from tests.settings import *  # noqa: F403

INSTALLED_APPS += ["tests.neighbours"]  # noqa: F405
