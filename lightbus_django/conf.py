"""The `LIGHTBUS` setting: typed, read lazily, and checked for all problems at once."""

import difflib
import os
import random
import re
import secrets
import socket
import string
from collections.abc import Iterator
from functools import lru_cache
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from django.conf import settings as django_settings
from django.core.signals import setting_changed
from msgspec import Meta

from .exceptions import ConfigurationError
from .redis_url import SCHEMES, parse

URL_HELP = "The URL of Redis is invalid: check the port, and that special characters are percent-encoded"

HELP = {
    "URL": "Use a URL such as 'redis://localhost:6379/0', 'redis+sentinel://host:26379,host2:26379/mymaster/0' or "
    "'redis+cluster://host:6379,host2:6379'.",
    "STREAM_USE": "Use 'per_api' or 'per_event'.",
}

Name = Annotated[str, Meta(min_length=1, max_length=100)]
TEN_YEARS = 315_360_000.0
Seconds = Annotated[float, Meta(gt=0, le=TEN_YEARS)]


class Settings(msgspec.Struct, frozen=True, kw_only=True, rename=str.upper):
    """The keys of `settings.LIGHTBUS`. Times are in seconds."""

    service_name: Name
    process_name: Name = "{random4}"
    code_version: Annotated[str, Meta(max_length=100)] = ""
    url: Annotated[str, Meta(pattern=f"^({'|'.join(map(re.escape, SCHEMES))})://")] = "redis://localhost:6379/0"
    stream_use: Literal["per_api", "per_event"] = "per_api"
    threads: Annotated[int, Meta(ge=1, le=1_000)] = 8
    batch_size: Annotated[int, Meta(ge=1, le=10_000)] = 100
    acknowledgement_timeout: Seconds = 60.0
    reclaim_interval: Seconds = 5.0
    consumer_ttl: Seconds = 2_592_000.0
    max_attempts: Annotated[int, Meta(ge=1, le=1_000)] = 5
    retry_backoff: Seconds = 10.0
    retry_backoff_max: Seconds = 3600.0
    redis_timeout: Annotated[float, Meta(gt=0, le=60)] = 1.0
    defer_commits: bool = True
    max_payload_size: Annotated[int, Meta(ge=1)] = 1_048_576
    stream_retention: Annotated[float, Meta(ge=0, le=TEN_YEARS)] = 86_400.0
    stream_min_length: Annotated[int, Meta(ge=0)] = 0
    group_stale_after: Seconds = 604_800.0
    inbox_retention: Seconds = 2_592_000.0
    outbox_retention: Seconds = 604_800.0
    failed_retention: Seconds = 7_776_000.0

    def __repr__(self) -> str:
        # Error pages show local variables, and the URL may contain a password.
        return f"<Settings of {self.service_name!r}>"


class Problem(NamedTuple):
    """A problem with the setting; `id` is that of the system check, without its prefix."""

    id: str
    message: str
    hint: str


def get_settings() -> Settings:
    """Return the current settings.

    Raises:
        ConfigurationError: `settings.LIGHTBUS` has a problem.
    """
    return _load()


@lru_cache(maxsize=1)
def _load() -> Settings:
    raw = getattr(django_settings, "LIGHTBUS", None)
    for problem in find_problems(raw):
        raise ConfigurationError(f"{problem.message} {problem.hint}")
    return msgspec.convert(raw, Settings)


def _forget(*, setting: str, **kwargs: Any) -> None:
    if setting == "LIGHTBUS":
        _load.cache_clear()


setting_changed.connect(_forget, dispatch_uid="lightbus_django.conf")


def find_problems(raw: Any) -> list[Problem]:
    """Return all problems of `raw`, the value of `settings.LIGHTBUS`."""
    if not isinstance(raw, dict):
        example = 'LIGHTBUS = {"SERVICE_NAME": "price-monitor"}'
        what = "is missing" if raw is None else "must be a dict"
        return [Problem("E001", f"settings.LIGHTBUS {what}.", f"For example: {example}")]
    fields = {field.encode_name: field for field in msgspec.structs.fields(Settings)}
    problems = []
    if "SERVICE_NAME" not in raw:
        problems.append(
            Problem(
                "E002",
                'settings.LIGHTBUS["SERVICE_NAME"] is missing.',
                "Give this service a name that all its processes share, such as 'price-monitor'.",
            )
        )
    for key, value in raw.items():
        if key not in fields:
            near = difflib.get_close_matches(str(key).upper(), fields, n=1, cutoff=0.5)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known keys: {', '.join(fields)}."
            problems.append(Problem("E003", f"settings.LIGHTBUS has no key {key!r}.", hint))
            continue
        try:
            if key == "URL" and isinstance(value, str):
                check_url(value)
            msgspec.convert(value, fields[key].type)
            if key.endswith("_NAME"):
                format_name(value)
        except (msgspec.ValidationError, ConfigurationError) as error:
            # The value is not shown, because a URL may contain a password.
            problems.append(
                Problem(
                    "E004",
                    f'settings.LIGHTBUS["{key}"] is invalid: {str(error).rstrip(".")}.',
                    HELP.get(key) or _default_of(fields[key]),
                )
            )
    if not problems:
        problems += _find_contradictions(msgspec.convert(raw, Settings))
    return problems


def _default_of(field: msgspec.structs.FieldInfo) -> str:
    return "There is no default." if field.required else f"The default is {field.default!r}."


def _find_contradictions(settings: Settings) -> Iterator[Problem]:
    for name in ("stream_retention", "outbox_retention"):
        if settings.inbox_retention < getattr(settings, name):
            yield Problem(
                "E006",
                f'settings.LIGHTBUS["INBOX_RETENTION"] is less than {name.upper()}.',
                "An event could be delivered, and handled, again after its idempotency key was deleted.",
            )


def check_url(url: str) -> None:
    scheme = re.match(r"([a-z][a-z0-9+.-]{0,30})://", url, re.IGNORECASE)
    if scheme and scheme[1] not in SCHEMES:
        hint = ""
        if "sentinel" in scheme[1].lower():
            hint = ": for Redis Sentinel, use redis+sentinel:// or, with TLS, rediss+sentinel://"
        elif "cluster" in scheme[1].lower():
            hint = ": for Redis Cluster, use redis+cluster:// or, with TLS, rediss+cluster://"
        raise ConfigurationError(f"{scheme[0]} is not supported{hint}")
    try:
        parsed = parse(url)
    except ValueError:
        raise ConfigurationError(URL_HELP) from None
    if parsed.names_sentinels:
        service, database = parsed.sentinel_service
        if not re.fullmatch(r"/[^/]+(/\d*)?", parsed.path) or (service.isdigit() and not database):
            raise ConfigurationError(
                "after the hosts, the name of the master must follow, such as /mymaster or /mymaster/0"
            )
    elif parsed.names_cluster:
        if parsed.path not in ("", "/", "/0"):
            raise ConfigurationError("a Redis Cluster has only database 0, so nothing may follow the hosts")
    elif parsed.scheme != "unix":
        if len(parsed.hosts) > 1:
            raise ConfigurationError("several hosts need redis+sentinel:// or redis+cluster://")
        if not re.fullmatch(r"/?\d*", parsed.path):
            raise ConfigurationError("after the host, only the number of a database may follow, such as /0")


_ADJECTIVES = "brave bright calm clever eager gentle happy jolly kind lively proud quick quiet swift".split()
_NOUNS = "badger beaver crane falcon fox heron ibex lynx marten otter owl raven swan wren".split()


def format_name(template: str) -> str:
    """Replace the placeholders of Lightbus: {hostname} {pid} {random4} {random8} {random16} {friendly}.

    Raises:
        ConfigurationError: the template has an unknown placeholder or is malformed.
    """
    letters = "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(16))
    placeholders = {
        "hostname": socket.gethostname().lower(),
        "pid": os.getpid(),
        "random4": letters[:4],
        "random8": letters[:8],
        "random16": letters,
        "friendly": f"{random.choice(_ADJECTIVES)}-{random.choice(_NOUNS)}-{random.randint(0, 999)}",
    }
    try:
        return template.format(**placeholders)
    except (LookupError, ValueError, AttributeError) as error:
        known = " ".join(f"{{{name}}}" for name in placeholders)
        raise ConfigurationError(
            f"the name {template!r} is malformed or has a placeholder other than {known}"
        ) from error


def is_random(template: str) -> bool:
    """Return whether the name made from `template` changes with every start of a process."""
    return re.search(r"\{(random\d+|friendly|pid)\W", template) is not None
