"""What a result was measured on."""

import os
import platform
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import redis

PACKAGES = ("Django", "redis", "hiredis", "msgspec", "psycopg")


def describe(redis_url: str, postgresql_url: str | None) -> dict[str, str]:
    """Return the machine, its Python with the packages that matter, and the servers at these URLs."""
    about = {
        "CPU": f"{os.cpu_count()} cores of {_cpu()}",
        "system": platform.platform(),
        "Python": sys.version.split()[0],
    }
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            about[package] = version(package)
    with redis.Redis.from_url(redis_url) as client:
        info = client.info("server")
    name = "Valkey" if "valkey_version" in info else "Redis"
    about[f"{name} server"] = info.get("valkey_version") or info["redis_version"]
    if postgresql_url:
        about["PostgreSQL"] = _postgresql_version(postgresql_url)
    return about


def _postgresql_version(url: str) -> str:
    import psycopg

    with psycopg.connect(url) as connection:
        return str(connection.info.parameter_status("server_version"))


def _cpu() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
