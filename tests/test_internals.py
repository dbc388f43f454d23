"""APIs that are not public, which docs/architecture.md lists: a new version that changes one of them fails here."""

import inspect
import subprocess
import sys
import threading

import pytest
import redis
from asgiref.sync import SyncToAsync
from django.db import connection, connections, transaction
from django.db.models.query import QuerySet
from django.db.utils import DatabaseErrorWrapper
from django.dispatch import Signal
from django.test import utils

from lightbus_django.models import FailedEvent, ProcessedEvent


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
class TestDjango:
    def test_commit_hooks(self):
        with transaction.atomic():
            transaction.on_commit(list, robust=True)
            hooks = connection.run_on_commit
            ((savepoints, hook, is_robust),) = hooks
            assert (savepoints, hook, is_robust) == (set(), list, True)
            transaction.set_rollback(True)
        assert connection.run_on_commit is not hooks

    def test_the_state_of_a_transaction(self):
        with transaction.atomic():
            assert len(connection.atomic_blocks) == 1
            assert connection.savepoint_ids == []
            assert connection.commit_on_exit is True
            assert connection.needs_rollback is False
            assert connection.closed_in_transaction is False
            assert connection.run_commit_hooks_on_set_autocommit_on is False

    def test_signals(self):
        assert Signal().receivers == []

    def test_what_surrounds_statements(self):
        assert isinstance(connection.execute_wrappers, list)
        assert isinstance(connection.wrap_database_errors, DatabaseErrorWrapper)
        assert hasattr(connection.queries_log, "clear")

    def test_the_backend(self):
        fields = [ProcessedEvent._meta.get_field("event_id")]
        assert connection.ops.bulk_batch_size(fields, [("a",)]) >= 1
        assert "VALUES" in connection.ops.bulk_insert_sql(fields, [["%s"]])
        assert connection in connections.all(initialized_only=True)
        assert callable(connection.close_if_unusable_or_obsolete)

    def test_querysets(self):
        failed = QuerySet(FailedEvent, using="other", hints={"a": 1})
        assert (failed._db, failed._hints) == ("other", {"a": 1})
        assert failed.query.get_compiler("other").as_sql()[0].startswith("SELECT")

    def test_the_test_environment(self):
        assert utils._TestState.saved_data


class TestRedisPy:
    def test_a_connection(self, r):
        pool = r.connection_pool
        found = pool.get_connection()
        try:
            found.send_packed_command([redis.connection.Encoder("utf-8", "strict", False).encode("PING\r\n")])
            assert found.read_response() in {b"PONG", "PONG"}
            assert "check_health" in inspect.signature(found.send_packed_command).parameters
            assert callable(found.retry.call_with_retry)
        finally:
            pool.release(found)
        assert "inuse_connections" in inspect.signature(pool.disconnect).parameters
        assert issubclass(pool.connection_class, redis.connection.AbstractConnection)
        assert callable(pool.make_connection)

    def test_slots_and_redirections(self):
        assert redis.crc.key_slot(b"{a}:b") == redis.crc.key_slot(b"a") == 15495
        for kind in (redis.exceptions.AskError, redis.exceptions.MovedError):
            error = kind("15495 ::1:7000")
            assert (error.slot_id, error.host, error.port) == (15495, "::1", 7000)


def test_asgiref():
    assert isinstance(SyncToAsync.threadlocal, threading.local)


def test_opentelemetry():
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    tracer = sdk.TracerProvider(shutdown_on_exit=False).get_tracer("a")
    assert tracer.id_generator.generate_trace_id()
    assert tracer.id_generator.generate_span_id()


def test_the_standard_library():
    assert isinstance(subprocess._args_from_interpreter_flags(), list)
    assert isinstance(sys._xoptions, dict)
    assert threading.get_ident() in sys._current_frames()
