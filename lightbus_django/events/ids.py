"""Event ids: how ours are generated, and which key stands for an id in the database."""

import hashlib
import os
import re
import threading
import time
import uuid

_SAFE_KEY = re.compile(r"[0-9a-z_:./*-]{1,72}")

_uuid_lock = threading.Lock()
_last_uuid_bits = 0


def uuid7() -> uuid.UUID:
    """Return a version 7 UUID (RFC 9562), greater than every earlier one of this process.

    The standard library has this from Python 3.14.
    """
    global _last_uuid_bits  # noqa: PLW0603
    random_bits = int.from_bytes(os.urandom(10), "big") >> 6
    with _uuid_lock:
        bits = (time.time_ns() // 1_000_000) << 74 | random_bits
        if bits >> 74 <= _last_uuid_bits >> 74:
            bits = _last_uuid_bits + 1 + (random_bits & 0xFFFFFFFF)
        _last_uuid_bits = bits
    high, low = bits >> 62, bits & (1 << 62) - 1
    timestamp, random_a = high >> 12, high & 0xFFF
    return uuid.UUID(int=timestamp << 80 | 7 << 76 | random_a << 64 | 2 << 62 | low)


def event_key(event_id: str) -> str:
    """Return the key that stands for an event id in the database: the id itself, or its digest.

    Other services may choose any string as an id. A digest is used for an id that is too long for the column, or that
    some database may confuse with another one: MariaDB, for example, ignores case and trailing spaces.
    """
    if _SAFE_KEY.fullmatch(event_id):
        return event_id
    return "sha256:" + hashlib.sha256(event_id.encode("utf-8", "surrogatepass")).hexdigest()
