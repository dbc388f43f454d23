"""For the tests of your project: the events that they fired, and a bus of their own where they ask for it.

In Django's test environment nothing reaches the Redis that `LIGHTBUS` names, and listeners don't run. This holds for
the process that runs the tests, and not for others that it starts.
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
    """A mixin for test cases that empties `fired` before each test. With pytest it is not needed."""

    def run(self, result: unittest.TestResult | None = None) -> unittest.TestResult | None:
        fired.clear()
        return super().run(result)


class real_bus(TestContextDecorator):  # noqa: N801
    """A context manager, and a decorator of tests and test cases, that gives them a real bus; yields its URL."""

    def __init__(self, url: str | None = None) -> None:
        """Make it.

        Args:
            url: a Redis for tests. By default an embedded server is started, and ends with the test; it needs the
                extra `[embedded]`.
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
