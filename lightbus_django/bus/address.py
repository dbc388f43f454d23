"""From the setting URL to redis-py's client: of one server, or of the master that Redis Sentinel names."""

from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.retry import Retry
from redis.sentinel import Sentinel

from lightbus_django.redis_url import RedisUrl, parse

SENTINEL_PORT = 26379

_OF_SENTINELS = {"sentinel_username": "username", "sentinel_password": "password"}
"""Options of the URL that only concern the Sentinels."""


def connect(url: str, **options: Any) -> Any:
    """Return redis-py's client for a URL; it connects when it is first used.

    Args:
        url: as the setting URL.
        options: options of its connections, which take precedence over those of the URL.

    Raises:
        ValueError, TypeError: the URL can't be read, or has unknown options.
    """
    parsed = parse(url)
    return _connect_by_sentinels(parsed, options) if parsed.names_sentinels else redis.Redis.from_url(url, **options)


def describe(url: str, pool: Any) -> str:
    """Return the address in a URL, without user, password and options. `pool` is that of redis-py's client."""
    where = pool.connection_kwargs
    parsed = parse(url)
    if "path" in where:
        return f"unix://{where['path']}"
    if parsed.names_sentinels:
        return parsed.address()
    return f"{parsed.scheme}://{where.get('host', 'localhost')}:{where.get('port', 6379)}/{where.get('db') or 0}"


def _connect_by_sentinels(url: RedisUrl, options: dict[str, Any]) -> Any:
    """Return a client whose connections ask the Sentinels for the address of the master."""
    service, database = url.sentinel_service
    read: Any = parse_url  # redis-py has no annotations here
    of_hosts = [read(url.of_host(host, f"/{database}")) for host in url.hosts]
    addresses = [(each.pop("host", "localhost"), each.pop("port", SENTINEL_PORT)) for each in of_hosts]
    of_servers = of_hosts[0]
    if of_servers.pop("connection_class", None) is not None:
        of_servers["ssl"] = True
    of_sentinels = {to: of_servers.pop(name) for name, to in _OF_SENTINELS.items() if name in of_servers}
    of_sentinels |= {
        name: value for name, value in (of_servers | options).items() if name.startswith(("ssl", "socket_"))
    }
    manager: Any = Sentinel
    sentinel = manager(addresses, sentinel_kwargs={**of_sentinels, "retry": Retry(NoBackoff(), 0)})
    return sentinel.master_for(service, **{**of_servers, **options})
