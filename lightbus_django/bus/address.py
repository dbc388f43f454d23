"""From the setting URL to one server, the master that Redis Sentinel names, or a cluster."""

from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.retry import Retry
from redis.sentinel import Sentinel

from lightbus_django.redis_url import RedisUrl, parse

from .cluster import Cluster
from .server import Server

SENTINEL_PORT = 26379

MAX_CONNECTIONS = 10_000
"""More than a process needs: every thread that listens or fires has one. redis-py's own limit is 100."""

_OF_SENTINELS = {"sentinel_username": "username", "sentinel_password": "password"}
"""Options of the URL that only concern the Sentinels."""


def connect(url: str, *, timeout: float, retries: int) -> Server | Cluster:
    """Return the server or servers of a URL; they are connected to when they are first used.

    Args:
        url: as the setting URL.
        timeout: seconds to wait for a connection, and for each reply.
        retries: how often a command is sent again when its connection turns out to be broken.

    Raises:
        ValueError, TypeError: the URL can't be read, or has unknown options.
    """
    parsed = parse(url)
    options = {
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "protocol": 2,
        "max_connections": MAX_CONNECTIONS,
        # No retry after a timeout.
        "retry": Retry(NoBackoff(), retries, supported_errors=(redis.ConnectionError,)),
    }
    if parsed.names_cluster:
        return _cluster(parsed, options, retries)
    client = _master_of_sentinels(parsed, options) if parsed.names_sentinels else redis.Redis.from_url(url, **options)
    server = Server(client, _address(parsed, client.connection_pool.connection_kwargs))
    _check(server.pool)
    return server


def _check(pool: Any) -> None:
    """Raise TypeError if connections of a pool have options that are unknown, or that change the replies."""
    pool.make_connection()
    options = pool.connection_kwargs
    if options.get("protocol") != 2 or options.get("decode_responses"):
        raise TypeError("'protocol' or 'decode_responses'")


def _address(url: RedisUrl, where: Any) -> str:
    """Return the address in a URL, without user, password and options; `where` are redis-py's options."""
    if "path" in where:
        return f"unix://{where['path']}"
    if url.names_sentinels:
        return url.address()
    return f"{url.scheme}://{where.get('host', 'localhost')}:{where.get('port', 6379)}/{where.get('db') or 0}"


def _of_hosts(url: RedisUrl, path: str) -> list[dict[str, Any]]:
    """Return redis-py's options for each host of a URL."""
    read: Any = parse_url  # redis-py has no annotations here
    return [read(url.of_host(host, path)) for host in url.hosts]


def _master_of_sentinels(url: RedisUrl, options: dict[str, Any]) -> Any:
    """Return redis-py's client whose connections ask the Sentinels for the address of the master."""
    service, database = url.sentinel_service
    of_hosts = _of_hosts(url, f"/{database}")
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


def _cluster(url: RedisUrl, options: dict[str, Any], retries: int) -> Cluster:
    of_hosts = _of_hosts(url, "")
    hosts = [(each.pop("host", "localhost"), each.pop("port", 6379)) for each in of_hosts]
    # What is sent again may have to go to another node, so connections don't do that themselves.
    cluster = Cluster(url.address(), hosts, {**options, **of_hosts[0], "retry": Retry(NoBackoff(), 0)}, retries=retries)
    _check(cluster.topology.node(*hosts[0]).pool)
    return cluster
