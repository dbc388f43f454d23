"""`on_commit` writes the event in the transaction at hand. If that commits, the event is published,
though Redis is away or the process dies at once; if it is rolled back, never.
"""

import subprocess
import sys

import pytest
from django.db import transaction

from lightbus_django import on_commit
from lightbus_django.models import OutboxEvent
from tests.conftest import ROOT, eventually, process_environment

pytestmark = pytest.mark.django_db(transaction=True)

DIES_AFTER_ITS_COMMIT = """
import os, signal
import django
django.setup()
from django.db import connection, transaction
from lightbus_django import on_commit
with transaction.atomic():
    transaction.on_commit(lambda: os.kill(os.getpid(), signal.SIGKILL))
    on_commit("shop.order_placed", number=7)
"""


def relay_at_once():
    """Spare us the grace that a relay gives the process that committed."""
    OutboxEvent.objects.exclude(due_at=None).update(due_at="2000-01-01T00:00Z", claimed_until=None)


def test_though_redis_is_away(lightbus, lightbus_url, manage, effects):
    lightbus(URL="redis://127.0.0.1:1")
    with transaction.atomic():
        on_commit("shop.order_placed", number=1)
    lightbus(URL=lightbus_url)
    relay_at_once()
    manage("lightbus_listen")
    eventually(lambda: effects("book") == [1])


def test_though_the_process_dies_right_after_the_commit(r, lightbus_url, manage, effects):
    process = subprocess.run(
        [sys.executable, "-c", DIES_AFTER_ITS_COMMIT],
        cwd=ROOT,
        env=process_environment(lightbus_url),
        check=False,
    )
    assert process.returncode == -9
    assert not r.exists("shop.*:stream")
    relay_at_once()
    manage("lightbus_listen")
    eventually(lambda: effects("book") == [7])


def test_never_after_a_rollback(r, manage, effects):
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        on_commit("shop.order_placed", number=1)
        raise ZeroDivisionError
    on_commit("shop.order_placed", number=2)
    assert manage("lightbus_listen", "--burst").wait(30) == 0
    assert effects("book") == [2]
