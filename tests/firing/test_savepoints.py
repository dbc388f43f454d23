"""Events fired in a savepoint that was rolled back are never published."""

import pytest
from django.db import connection, transaction

from lightbus_django import on_commit
from tests.bus.test_confirmations import place_orders
from tests.firing.helpers import numbers

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


@pytest.fixture
def savepoint():
    # The name before Django 6.1.
    return getattr(transaction, "savepoint_create", None) or transaction.savepoint


def test_a_savepoint_before_the_first_event(r, savepoint):
    for number in range(3):
        with transaction.atomic():
            before = savepoint()
            on_commit("shop.order_placed", number=number)
            transaction.savepoint_rollback(before)
        place_orders(10 + number)
    assert numbers(r) == [10, 11, 12]


def test_after_the_list_of_wrappers_was_emptied(r, savepoint):
    place_orders(1)
    connection.execute_wrappers.clear()
    with transaction.atomic():
        before = savepoint()
        on_commit("shop.order_placed", number=2)
        transaction.savepoint_rollback(before)
    assert numbers(r) == [1]


def test_a_savepoint_in_raw_sql(r):
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SAVEPOINT by_hand")
        on_commit("shop.order_placed", number=1)
        cursor.execute("ROLLBACK TO SAVEPOINT by_hand")
        on_commit("shop.order_placed", number=2)
    assert numbers(r) == [2]


def test_after_a_commit_hook_that_opens_transactions(r, savepoint):
    with transaction.atomic():
        before = savepoint()
        transaction.on_commit(lambda: place_orders(1))
        transaction.savepoint_rollback(before)  # it is not Django's atomic(), so the hook stays
        before = savepoint()
        on_commit("shop.order_placed", number=2)
        transaction.savepoint_rollback(before)
    assert numbers(r) == [1]


def test_in_a_test_case(r, savepoint, django_capture_on_commit_callbacks):
    with transaction.atomic():
        before = savepoint()
        with django_capture_on_commit_callbacks(execute=True):
            on_commit("shop.order_placed", number=1)
        assert numbers(r) == [1]
        on_commit("shop.order_placed", number=2)
        transaction.savepoint_rollback(before)
    assert numbers(r) == [1]


def test_after_the_savepoint_counter_was_reset(r, savepoint):
    with transaction.atomic():
        savepoint()
        on_commit("shop.order_placed", number=1)
    with transaction.atomic():
        transaction.clean_savepoints()
        before = savepoint()
        on_commit("shop.order_placed", number=2)
        transaction.savepoint_rollback(before)
    assert numbers(r) == [1]
