"""The setting URL, taken apart: one Redis server, several Sentinels, or nodes of a cluster.

`urlsplit` is given one host at most: from Python 3.14 on it refuses lists in which a `[` comes late.
"""

import re
from typing import NamedTuple

SENTINEL = "+sentinel"
CLUSTER = "+cluster"

SCHEMES = (
    "redis",
    "rediss",
    "unix",
    f"redis{SENTINEL}",
    f"rediss{SENTINEL}",
    f"redis{CLUSTER}",
    f"rediss{CLUSTER}",
)

_URL = re.compile(r"([a-z+]+)://(?:([^/?#\[\]]*)@)?([^/?#]*)([^?#]*)(\?[^#]*)?", re.DOTALL)
_HOST = re.compile(r"(?:\[[^\[\]@,]+\]|[^\[\]:]*)(?::(\d{0,5}))?")


class RedisUrl(NamedTuple):
    """The parts of a URL, as they are written in it."""

    scheme: str
    user: str
    """User and password, with the `@` that follows; or empty."""
    hosts: tuple[str, ...]
    path: str
    query: str
    """The options, with the `?` before them; or empty."""

    @property
    def names_sentinels(self) -> bool:
        return self.scheme.endswith(SENTINEL)

    @property
    def names_cluster(self) -> bool:
        return self.scheme.endswith(CLUSTER)

    @property
    def sentinel_service(self) -> tuple[str, str]:
        """The name by which Sentinels know the master, and the number of the database, empty if it is not given."""
        service, _, database = self.path.removeprefix("/").partition("/")
        return service, database

    def of_host(self, host: str, path: str) -> str:
        """Return the URL of one of the hosts, without the `+…` of the scheme."""
        return f"{self.scheme.partition('+')[0]}://{self.user}{host}{path}{self.query}"

    def address(self) -> str:
        """Return the URL without user, password and options."""
        return f"{self.scheme}://{','.join(self.hosts)}{self.path}"


def parse(url: str) -> RedisUrl:
    """Take a URL apart.

    Raises:
        ValueError: it is no URL, or a host or a port is invalid. The text does not quote the URL.
    """
    found = _URL.match(url)
    if not found:
        raise ValueError("not a URL")
    scheme, user, hosts, path, query = found.groups()
    return RedisUrl(
        scheme, "" if user is None else f"{user}@", tuple(map(_checked, hosts.split(","))), path, query or ""
    )


def _checked(host: str) -> str:
    found = _HOST.fullmatch(host)
    if not found or int(found[1] or 0) > 65535:
        raise ValueError("invalid host or port")
    return host
