"""Breaks what the harness is there to see: one that can't fail proves nothing. `--sabotage` says what."""

from typing import Any

SABOTAGES = {
    "keys": "listeners without idempotency keys: effects are doubled",
    "acknowledgement": "events are acknowledged before they are handled: some are lost",
    "outbox": "producers fire within their transactions: ghosts, and events that are lost",
    "trimming": "streams are trimmed of what no group has finished with: events are lost",
    "order": "the events of a transaction are published, and those of a batch handled, in reverse",
}


def sabotage(kind: str) -> None:
    from lightbus_django import outbox, streams
    from lightbus_django.consumer import Consumer

    if kind == "acknowledgement":
        sort = Consumer._sort

        def acknowledge_and_sort(self: Consumer, entry: Any) -> None:
            self.reading.settle(entry)
            self.reading.flush()
            sort(self, entry)

        Consumer._sort = acknowledge_and_sort
    elif kind == "order":
        publish, handle = outbox.publish_with_notes, Consumer._handle

        def publish_in_reverse(events: Any, *args: Any) -> None:
            publish(events[::-1], *args)

        def handle_in_reverse(self: Consumer) -> bool:
            if not self._careful:
                self._held.reverse()
            return handle(self)

        outbox.publish_with_notes = publish_in_reverse
        Consumer._handle = handle_in_reverse
    elif kind == "trimming":

        def trim_all(transport: Any, stream: str, **kwargs: Any) -> int:
            removed: int = transport.client.xtrim(stream, maxlen=0, approximate=False)
            return removed

        streams.trim = trim_all
    # "keys" and "outbox" are seen to by the listeners and the producers.
