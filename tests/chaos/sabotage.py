"""Breaks what the harness is there to see: one that can't fail proves nothing. `--sabotage` says what."""

from typing import Any

SABOTAGES = {
    "keys": "listeners without idempotency keys: effects are doubled",
    "acknowledgement": "events are acknowledged before they are handled: some are lost",
    "outbox": "producers fire within their transactions: ghosts, and events that are lost",
    "trimming": "streams are trimmed of what no group has finished with: events are lost",
    "gate": "nothing makes deferred commits durable before their events are acknowledged: effects are lost in a crash",
    "gate-writes-nothing": "the gate reads the keys, and writes nothing: the same",
    "found": "keys that were found, not inserted, pass no gate: the same, but more rarely",
    "order": "the events of a transaction are published, and those of a batch handled, in reverse",
}


def sabotage(kind: str) -> None:
    from lightbus_django.bus import streams
    from lightbus_django.firing import after_commit
    from lightbus_django.listening import commit_gate
    from lightbus_django.listening.consumer import Consumer
    from lightbus_django.listening.in_flight import InFlight

    if kind == "acknowledgement":
        receive = Consumer._receive

        def acknowledge_and_receive(self: Consumer, entries: Any, now: float) -> bool:
            self.in_flight.skip(entries)
            self.reader.flush()
            return receive(self, entries, now)

        Consumer._receive = acknowledge_and_receive
    elif kind == "order":
        publish, admit = after_commit.publish_and_confirm, InFlight.admit

        def publish_in_reverse(events: Any, *args: Any) -> Any:
            return publish(events[::-1], *args)

        def admit_in_reverse(self: InFlight, **options: Any) -> None:
            admit(self, **options)
            self._waiting.reverse()

        after_commit.publish_and_confirm = publish_in_reverse
        InFlight.admit = admit_in_reverse
    elif kind == "trimming":

        def trim_all(redis_client: Any, stream: str, **kwargs: Any) -> int:
            removed: int = redis_client.execute(("XTRIM", stream, "MAXLEN", 0), stream)
            return removed

        streams.trim = trim_all
    elif kind == "gate":
        commit_gate.CommitGate._prove = lambda self, keys: len(keys)
    elif kind == "gate-writes-nothing":
        commit_gate._PROVE = commit_gate._PROVE.replace("FOR KEY SHARE", "")
    elif kind == "found":
        commit_gate.CommitGate.add_found = lambda self, key: None
    # "keys" and "outbox" are seen to by the listeners and the producers.
