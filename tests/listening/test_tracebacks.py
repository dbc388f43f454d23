"""The line in the log about a failure: the place in the user's own code, and the time as the log has it."""

import asyncio
import functools
import inspect
import json
import logging
import re
import sys
import time

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.template import Context, Template

from lightbus_django import fire, listens_to, on_commit
from lightbus_django.exceptions import TransactionEnded
from lightbus_django.listening.tracebacks import locate
from lightbus_django.models import FailedEvent
from tests.app.models import Effect
from tests.conftest import drain

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


def line_of(function, text):
    """The place of a line of a function's source."""
    lines, first = inspect.getsourcelines(function)
    number = next(number for number, line in enumerate(lines, first) if text in line)
    return f"{__file__}:{number}"


# --- Handlers; the line to be named ends with "# here" ------------------------------------------


def raises(event):
    raise ValueError("no such article")  # here


def raises_in_the_orm(event):
    Effect.objects.get(number=5)  # here


def fires_what_has_no_json(event):
    on_commit("shop.order_sent", thing=object())  # here


def raises_in_a_library_that_calls_back(event):
    def refuse(value):
        raise ValueError(value)  # here

    json.loads('{"number": 5}', object_hook=refuse)


def raises_in_the_standard_library(event):
    json.loads("{")  # here


def raises_in_a_template(event):
    Template("{% if %}").render(Context())  # here


def translates(event):
    try:
        Effect.objects.get(number=5)  # here
    except Effect.DoesNotExist as error:
        raise ValueError("no such article") from error


def translates_without_its_cause(event):
    try:
        Effect.objects.get(number=5)
    except Effect.DoesNotExist:
        raise ValueError("no such article") from None  # here


async def raises_async(event):
    await asyncio.sleep(0)
    await Effect.objects.aget(number=5)  # here


async def raises_in_a_task(event):
    async def work():
        await Effect.objects.aget(number=5)  # here

    async with asyncio.TaskGroup() as group:
        group.create_task(work())


def raises_from_itself(event):
    error = ValueError("again")
    raise error from error  # here


def imports_what_is_no_python(event):
    import broken_module_of_the_tests  # noqa: F401  # here


def raises_in_a_batch(events):
    Effect.objects.get(number=5)  # here


class Handler:
    def handle(self, event):
        Effect.objects.get(number=5)  # here


HANDLERS = [
    raises,
    raises_in_the_orm,
    fires_what_has_no_json,
    raises_in_a_library_that_calls_back,
    raises_in_the_standard_library,
    raises_in_a_template,
    translates,
    translates_without_its_cause,
    raises_async,
    raises_in_a_task,
    raises_from_itself,
    imports_what_is_no_python,
]


@pytest.fixture
def log_of(r, listeners, consume, caplog):
    """Handle one event, retry it, and return what was logged of its failures."""

    def run(handler, **options):
        listens_to("shop.order_placed", listener_name="handler", **options)(handler)
        consumer = consume()
        fire("shop.order_placed")
        drain(consumer)
        FailedEvent.objects.get().retry_now()
        consumer.retries_due.set()
        drain(consumer)
        lines = [record.getMessage() for record in caplog.records if "failed, attempt" in record.getMessage()]
        assert len(lines) == 2
        return lines

    return run


@pytest.fixture(autouse=True)
def broken_module(tmp_path, monkeypatch):
    (tmp_path / "broken_module_of_the_tests.py").write_text("def\n")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize("idempotent", [True, False])
@pytest.mark.parametrize("handler", HANDLERS, ids=lambda handler: handler.__name__)
def test_the_place_is_in_the_handler(handler, idempotent, log_of):
    for line in log_of(handler, idempotent=idempotent):
        assert f" at {line_of(handler, '# here')};" in line


def test_the_place_is_in_a_batch_handler(log_of):
    for line in log_of(raises_in_a_batch, batch=True):
        assert f" at {line_of(raises_in_a_batch, '# here')};" in line


def test_the_place_is_in_a_partial(log_of):
    def named(event, number):
        Effect.objects.get(number=number)  # here

    handler = functools.update_wrapper(functools.partial(named, number=5), named)
    del handler.__wrapped__  # whose signature asks for a number
    for line in log_of(handler):
        assert f" at {line_of(named, '# here')};" in line


def test_the_place_is_in_a_method(log_of):
    for line in log_of(Handler().handle):
        assert f" at {line_of(Handler, '# here')};" in line


def test_no_place_rather_than_one_in_django(log_of):
    """The handler is Django's own code."""
    for line in log_of(functools.update_wrapper(functools.partial(Effect.objects.get), raises)):
        assert "failed, attempt 1: TypeError; " in line


def test_a_handler_that_commits_and_raises_is_named_too(log_of):
    from django.db import connection

    def ends(event):
        with connection.cursor() as cursor:
            cursor.execute("COMMIT")
        raise ValueError("too late")  # here

    assert f"{TransactionEnded.__name__} at {line_of(ends, '# here')};" in log_of(ends)[0]


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A handler in a package that is installed beside Django."""
    directory = tmp_path / "lib" / "site-packages"
    directory.mkdir(parents=True)
    (directory / "installed_by_the_tests.py").write_text(
        "from tests.app.models import Effect\n\n\ndef handler(event):\n    Effect.objects.get(number=5)\n"
    )
    monkeypatch.syspath_prepend(directory)
    from installed_by_the_tests import handler

    yield handler
    del sys.modules["installed_by_the_tests"]


def test_the_place_is_in_the_handler_though_that_is_installed(installed, log_of):
    for line in log_of(installed):
        assert "installed_by_the_tests.py:5;" in line


def test_an_installed_package_that_a_handler_calls_is_not_the_place(installed, log_of):
    def calls(event):
        installed(event)  # here

    for line in log_of(calls):
        assert f" at {line_of(calls, '# here')};" in line


def test_an_error_that_was_never_raised_has_no_place():
    assert locate(ImproperlyConfigured("x")) == "ImproperlyConfigured"


@pytest.fixture(params=["Asia/Tokyo", "America/New_York"])
def zone(request, monkeypatch):
    """The zone of the server."""
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize("use_tz", [True, False])
def test_the_time_is_that_of_the_log(use_tz, zone, settings, log_of, lightbus, caplog):
    settings.USE_TZ = use_tz
    lightbus(RETRY_BACKOFF=1)
    line = log_of(raises)[0]
    (due,) = re.findall(r"next attempt at (\S+)", line)
    logged = logging.Formatter("%(asctime)s", "%H:%M:%S").format(caplog.records[0])
    assert (seconds(due) - seconds(logged)) % 86400 < 600


def seconds(time_of_day):
    hours, minutes, seconds = map(int, time_of_day.split(":"))
    return hours * 3600 + minutes * 60 + seconds
