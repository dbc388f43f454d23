"""Event names, and the keys of their streams."""

import pytest

from lightbus_django.events.names import split_name, stream_key
from lightbus_django.exceptions import InvalidEventName


@pytest.mark.parametrize(
    "name",
    ["", ".", "nodot", "a.", ".b", "a b.c", "a.b c", "a..b", "a.b\n", "a.\x00", "a.*", "a:b.c", "x" * 200 + ".y", None],
)
def test_event_names_that_cannot_be(name):
    with pytest.raises(InvalidEventName, match="is not an event name"):
        split_name(name)


def test_the_event_is_what_follows_the_last_dot():
    assert split_name("my_company.auth.user_registered") == ("my_company.auth", "user_registered")
    assert stream_key("my_company.auth.user_registered", "per_api") == "my_company.auth.*:stream"
    assert stream_key("my_company.auth.user_registered", "per_event") == "my_company.auth.user_registered:stream"
