"""The pytest plugin: clears `lightbus_django.testing.fired` before each test, and provides the marker `lightbus`."""

from collections.abc import Iterator

import pytest

from .bus import sandbox


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "lightbus: give the test a real bus on an embedded server")
    sandbox.is_pytest = True


def pytest_unconfigure(config: pytest.Config) -> None:
    sandbox.is_pytest = False


@pytest.fixture(autouse=True)
def _lightbus_in_tests(request: pytest.FixtureRequest) -> Iterator[None]:
    sandbox.fired.clear()
    if request.node.get_closest_marker("lightbus") is None:
        yield
        return
    from .testing import real_bus

    with real_bus():
        yield
