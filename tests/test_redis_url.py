"""What the setting URL says, without `urlsplit`, which refuses some lists of hosts from Python 3.14 on."""

import pytest

from lightbus_django.redis_url import parse


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("redis://", ("redis", "", ("",), "", "")),
        ("redis://localhost:6379/0", ("redis", "", ("localhost:6379",), "/0", "")),
        ("rediss://me:p%40ss@[::1]:6379/0?a=b", ("rediss", "me:p%40ss@", ("[::1]:6379",), "/0", "?a=b")),
        ("unix:///run/redis@1.sock?db=1", ("unix", "", ("",), "/run/redis@1.sock", "?db=1")),
        ("redis+sentinel://:a,b@@c,[::1]:1/m/0", ("redis+sentinel", ":a,b@@", ("c", "[::1]:1"), "/m/0", "")),
    ],
)
def test_the_parts(url: str, parts: tuple[object, ...]) -> None:
    assert parse(url) == parts


@pytest.mark.parametrize(
    "url",
    ["redis:/host", "redis://host:x", "redis://host:65536", "redis://a[::1]", "redis://[::1", "redis://:pa[ss@host"],
)
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(ValueError, match=r"^[a-zA-Z ]+$"):
        parse(url)


def test_the_url_of_one_host() -> None:
    parsed = parse("rediss+sentinel://:secret@host,[::1]:26379/mymaster/2?a=b")
    assert parsed.of_host(parsed.hosts[1], "/2") == "rediss://:secret@[::1]:26379/2?a=b"
    assert parsed.address() == "rediss+sentinel://host,[::1]:26379/mymaster/2"
