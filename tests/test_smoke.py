import pytest
from lightbus_django import fire, listens_to
from tests.app.models import Effect
from tests.conftest import drain
pytestmark = pytest.mark.django_db(transaction=True)

def test_x(listeners, consume):
    @listens_to("a.b")
    def h(event, **kw): Effect.objects.create(name="x")
    c = consume()
    fire("a.b", x=1)
    drain(c)
    assert Effect.objects.count() == 1
