import pytest

from tests.app.models import Effect

KEY = "shop.*:stream"


@pytest.fixture
def effects():
    """What the handlers of tests/app/listeners.py did: the numbers of the events, in order."""

    def read(name):
        return sorted(Effect.objects.filter(name=name).values_list("number", flat=True))

    return read


@pytest.fixture
def pending(r):
    """How many events a consumer group has in hand."""

    def read(group):
        groups = {row["name"]: row for row in r.xinfo_groups(KEY)} if r.exists(KEY) else {}
        return groups[group]["pending"] if group in groups else None

    return read
