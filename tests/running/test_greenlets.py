"""Processes that gevent or eventlet has patched fire events, and don't listen."""

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest

from tests.conftest import ROOT, process_environment

pytestmark = pytest.mark.django_db(transaction=True)

PATCHES = {
    "gevent": "from gevent import monkey; monkey.patch_all()",
    "gevent without threads": "from gevent import monkey; monkey.patch_all(thread=False)",
    "gevent, only sockets": "from gevent import monkey; monkey.patch_socket()",
    "eventlet": "import eventlet; eventlet.monkey_patch()",
}
LISTEN = (
    "from django.core.management import execute_from_command_line as run; run(['manage.py', 'lightbus_listen', {}])"
)
FIRE = """
import django
import gevent

django.setup()

from django.db import connections, transaction
from lightbus_django import fire, on_commit


def work(number):
    fire("shop.order_placed", number=number)
    with transaction.atomic():
        on_commit("shop.parcel_delivered", number=number)
    connections.close_all()


gevent.joinall([gevent.spawn(work, number) for number in range(20)], raise_error=True)
"""


@pytest.fixture
def python(lightbus_url):
    """Run code in a process of its own."""

    def run(*lines):
        return subprocess.run(  # noqa: PLW1510
            [sys.executable, "-c", "\n".join(lines)],
            cwd=ROOT,
            env=process_environment(lightbus_url),
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


def needs(library):
    """Skip the test where the library is not installed; it is not imported here."""
    if find_spec(library) is None:
        pytest.skip(f"{library} is not installed")


@pytest.mark.parametrize("patch", PATCHES)
@pytest.mark.parametrize("option", ["--burst", "--processes=2"])
def test_a_patched_process_does_not_listen(python, r, patch, option):
    library = patch.partition(" ")[0].strip(",")
    needs(library)
    process = python(PATCHES[patch], LISTEN.format(repr(option)))
    assert process.returncode == 1
    assert f"CommandError: lightbus_listen can't run where {library} has patched " in process.stderr


def test_a_process_that_only_imports_gevent_listens(python, r):
    needs("gevent")
    process = python("import gevent.monkey; gevent.monkey.patch_subprocess()", LISTEN.format("'--burst'"))
    assert process.returncode == 0, process.stderr


def test_greenlets_fire(python, r):
    needs("gevent")
    process = python(PATCHES["gevent"], FIRE)
    assert process.returncode == 0, process.stderr
    numbers = [(fields["event_name"], json.loads(fields[":number"])) for _, fields in r.xrange("shop.*:stream")]
    assert sorted(numbers) == [(name, number) for name in ("order_placed", "parcel_delivered") for number in range(20)]
