"""Edits of a failed event's payload: one listener's copy is changed, and retried."""

import hashlib
import json
from typing import Any

from django.db import transaction
from django.utils import timezone

from lightbus_django.database.text import storable
from lightbus_django.events.codec import Fields, dump_fields, encode_payload, load_fields
from lightbus_django.events.times import as_aware
from lightbus_django.exceptions import InvalidPayload, UnreadableEvent
from lightbus_django.listening.failures import extended, shorten
from lightbus_django.models import FailedEvent, ProcessedEvent, new_retry_request

MAX_EDITABLE = 1_000_000
"""Characters of a payload above which it can't be edited, because Django limits the size of a form."""

MAX_IN_HISTORY = 2_000
"""Characters that the history keeps of what was changed, before and after."""


class EventChanged(Exception):
    """The failed event is gone, or is not as it was when somebody began to edit it."""


def payload_text(event: FailedEvent) -> str:
    """Return the payload that the listener gets as indented JSON.

    Raises:
        UnreadableEvent: the event can't be read, or its payload is too long to be edited.
    """
    event.message()
    text = to_text(_values(load_fields(event.fields)), indent=2)
    if len(text) > MAX_EDITABLE:
        raise UnreadableEvent(f"its payload has {len(text):,} characters, and {MAX_EDITABLE:,} can be edited")
    return text


def to_text(value: Any, indent: int | None = None) -> str:
    """Return a value as JSON that people can read, and that can be encoded as UTF-8."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, default=str)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        text = json.dumps(value, indent=indent, default=str)
    return text


def parse_payload(text: str) -> dict[str, Any]:
    """Return the payload in a text.

    Raises:
        InvalidPayload: it is not JSON, with the place of the mistake; or not an object.
    """
    try:
        payload = json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        raise InvalidPayload(f"this is not JSON: {error.msg}, in line {error.lineno}, column {error.colno}") from error
    except (ValueError, RecursionError) as error:
        raise InvalidPayload(f"this can't be read: {error}") from error
    if not isinstance(payload, dict):
        raise InvalidPayload('a payload is a JSON object, such as {"number": 1}')
    return payload


def with_payload(event: FailedEvent, payload: dict[str, Any]) -> FailedEvent:
    """Return a copy of a failed event with another payload, not saved. Values that are the same keep their bytes.

    Raises:
        InvalidPayload: a key or value can't be on the bus.
    """
    fields = load_fields(event.fields)
    before = _values(fields)
    changed = {key: value for key, value in payload.items() if key not in before or not _is_same(before[key], value)}
    text = event.fields
    if changed or before.keys() != payload.keys():
        encoded = encode_payload(changed)
        edited = {name: value for name, value in fields.items() if name[:1] != b":"}
        for key in payload:
            name = b":" + key.encode()
            edited[name] = encoded[key] if key in encoded else fields[name]
        text = dump_fields(edited)
    names = "event_id", "event_name", "consumer_group", "stream_id", "attempts", "error"
    return FailedEvent(fields=text, **{name: getattr(event, name) for name in names})


def version_of(event: FailedEvent) -> str:
    """Return a text that differs if the event was edited, retried or claimed in the meantime."""
    state = event.fields, event.attempts, event.failed_at, event.next_attempt_at, event.edited_at
    return hashlib.sha256(repr(state).encode()).hexdigest()


def describe_edit(before: str, after: str) -> tuple[str, str]:
    """Return what differs between the fields of an event before and after an edit, as JSON of limited length."""
    old, new = _values(load_fields(before)), _values(load_fields(after))
    keys = [key for key in {**old, **new} if key not in old or key not in new or not _is_same(old[key], new[key])]
    texts = (to_text({key: side[key] for key in keys if key in side}) for side in (old, new))
    removed, added = (shorten(text, MAX_IN_HISTORY) for text in texts)
    return removed, added


def edit_and_retry(event: FailedEvent, fields: str, using: str, by: str) -> None:
    """Give a failed event another content, and make it due; what was fired, and other listeners, are not affected.

    Args:
        event: the failed event as it was when somebody began to edit it.
        fields: its fields from now on, as text.
        using: the alias of its database.
        by: who edits it.

    Raises:
        EventChanged: it is not as it was, or a process is retrying it. Nothing was changed.
    """
    with transaction.atomic(using=using):
        request = new_retry_request(using, by)  # a write, before anything is read: SQLite locks with the first one
        row = FailedEvent.objects.using(using).filter(pk=event.pk)
        skips = transaction.get_connection(using).features.has_select_for_update_skip_locked
        current = row.unclaimed(timezone.now()).select_for_update(skip_locked=skips).first()
        if current is None or version_of(current) != version_of(event):
            raise EventChanged
        original = current.fields if current.original_fields is None else current.original_fields
        is_edited = fields != original
        by = storable(by, FailedEvent._meta.get_field("edited_by"), using)
        row.update(
            fields=fields,
            original_fields=original if is_edited else None,
            edited_at=timezone.now(),
            edited_by=by if is_edited else "",
            history=extended(current.history or [], _entry(current.fields, fields, by, using)),
        )
        keys = ProcessedEvent.objects.using(using).filter(event_id=event.event_id)
        keys.filter(consumer_group=event.consumer_group).update(edited_by=by if is_edited else "")
        row.request_retry(request)


def _entry(before: str, after: str, by: str, using: str) -> dict[str, Any]:
    history = FailedEvent._meta.get_field("history")
    removed, added = (storable(text, history, using) for text in describe_edit(before, after))
    at = as_aware(timezone.now()).isoformat(timespec="milliseconds")
    return {"at": at, "by": by, "before": removed, "after": added}


def _values(fields: Fields) -> dict[str, Any]:
    # With Python's own JSON, numbers are as they were written, whatever their size.
    try:
        return {name[1:].decode(): json.loads(value.decode()) for name, value in fields.items() if name[:1] == b":"}
    except (ValueError, RecursionError) as error:
        raise UnreadableEvent(str(error)) from error


def _is_same(one: Any, other: Any) -> bool:
    """Whether two values are the same in JSON, where 1, 1.0 and true differ."""
    return json.dumps(one) == json.dumps(other)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} is there twice")
        found[key] = value
    return found
