"""The end: what the business tables say, compared with what the producers committed."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import accumulate

from lightbus_django.models import FailedEvent, OutboxEvent

from .listeners import LISTENERS
from .models import Alone, Effect, Sent
from .witness import Seen

DATABASES = sorted(set(LISTENERS.values()))

FIRING = {"chaos": "default", "echo": "echo"} if "echo" in DATABASES else {"chaos": "default"}
"""The services that fire with `on_commit`, and the database in which each has its outbox."""

Stops = Sequence[tuple[float, float]]


@dataclass
class Verdict:
    """What is wrong, one line for each case; and what was looked at."""

    sent: int = 0
    effects: int = 0
    retried: int = 0
    relayed: int = 0
    """Events that a relay published, or that may have been."""
    copies: int = 0
    """Entries of the stream beyond one for each event."""
    in_order: int = 0
    """Events whose order in the stream was looked at."""
    handled_in_order: int = 0
    """Effects whose order was looked at."""
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    ghosts: list[str] = field(default_factory=list)
    out_of_order: list[str] = field(default_factory=list)
    handled_out_of_order: list[str] = field(default_factory=list)
    dead_letters: list[str] = field(default_factory=list)
    cut_off: int = 0
    """Dead letters of the handler that commits by itself, whose connection broke in its own COMMIT: they have to be."""
    alone: int = 0
    """Events fired with `fire` that Redis acknowledged."""
    alone_lost: int = 0
    """Those of them that never arrived."""

    @property
    def wrong(self) -> dict[str, list[str]]:
        return {
            "lost": self.lost,
            "doubled": self.doubled,
            "ghosts": self.ghosts,
            "out of order in the stream": self.out_of_order,
            "handled out of order": self.handled_out_of_order,
            "dead letters": self.dead_letters,
        }


def judge(seen: Sequence[Seen], stops: Stops, outages: Stops) -> Verdict:
    """Compare, with the streams as they were seen and the times when workers were being stopped, in order.

    What was fired in an outage of Redis may have been published by a relay, as soon as that was back.
    """
    verdict = Verdict(sent=Sent.objects.count(), effects=count_effects())
    committed = set(Sent.objects.values_list("pk", flat=True))
    for listener, alias in LISTENERS.items():
        effects = Effect.objects.using(alias).filter(listener=listener)
        times = Counter(effects.values_list("sent", flat=True).iterator())
        lost = Sent.objects.in_bulk(committed.difference(times))
        verdict.lost += [f"{listener}: {lost[sent]}; {traces(lost[sent])}" for sent in sorted(lost)]
        verdict.doubled += [f"{listener}: {sent}, {count} times" for sent, count in sorted(times.items()) if count > 1]
        verdict.ghosts += [f"{listener}: {sent}" for sent in sorted(set(times).difference(committed))]
    alone = set(Alone.objects.values_list("pk", flat=True))
    counted = Effect.objects.filter(listener="counted").values_list("sent", flat=True)
    verdict.alone, verdict.alone_lost = len(alone), len(alone.difference(counted.iterator()))
    verdict.ghosts += [f"in the stream: {one}" for one in seen if one.sent not in committed]
    failures = [failed for alias in DATABASES for failed in FailedEvent.objects.using(alias).order_by("pk")]
    dead = [failed for failed in failures if not is_cut_off(failed)]
    verdict.cut_off = len(failures) - len(dead)
    verdict.dead_letters = [f"{failed.consumer_group}: {failed.event_id}: {failed.error}" for failed in dead]
    undisturbed = [
        one
        for one in seen
        if one.is_undisturbed and not any(began <= one.called_at <= ended for began, ended in outages)
    ]
    verdict.in_order = len(undisturbed)
    verdict.relayed = len(seen) - len(undisturbed)
    verdict.copies = sum(one.copies - 1 for one in seen)
    verdict.out_of_order = stream_disorder(undisturbed)

    is_first_hand = FirstHand(stops)
    first_hand = []
    for alias in DATABASES:
        effects = Effect.objects.using(alias)
        verdict.retried += effects.filter(attempt__gt=1).count()
        rows = effects.order_by("pk").values_list("listener", "api_name", "run", "stream_id", "attempt", "at")
        first_hand += [row[:4] for row in rows.iterator() if is_first_hand(*row[3:])]
    verdict.handled_in_order = len(first_hand)
    verdict.handled_out_of_order = handling_disorder(first_hand)
    return verdict


def is_cut_off(failed: FailedEvent) -> bool:
    """Whether it is an event whose handler committed, and then had no answer because its connection broke."""
    is_committed = failed.error.startswith("TransactionEnded: the handler committed, then raised ")
    is_broken = "OperationalError" in failed.error or "InterfaceError" in failed.error
    return failed.consumer_group == "chaos-committing" and failed.is_dead_letter and is_committed and is_broken


def count_effects() -> int:
    """Return how many effects all listeners have written so far."""
    return sum(Effect.objects.using(alias).count() for alias in DATABASES)


def stream_disorder(seen: Iterable[Seen]) -> list[str]:
    """Return the events that are in their stream behind a later one of their producer."""
    disorder = []
    last: dict[tuple[str, str], Seen] = {}
    for one in seen:
        before = last.setdefault((one.stream, one.producer), one)
        if (one.number, one.part) < (before.number, before.part):
            disorder.append(f"{one} behind {before}")
        else:
            last[one.stream, one.producer] = one
    return disorder


class FirstHand:
    """Whether an effect is the first delivery's for certain.

    What a worker hands back as it is stopped counts as not delivered yet. So the effect is not sure
    to be that if, between publishing and handling, any worker was being stopped.
    """

    def __init__(self, stops: Stops) -> None:
        self.began = [began for began, _ in stops]
        self.all_ended = [0.0, *accumulate((ended for _, ended in stops), max)]

    def __call__(self, stream_id: str, attempt: int, at: datetime) -> bool:
        published = int(stream_id.partition("-")[0]) / 1000
        return attempt == 1 and self.all_ended[bisect_right(self.began, at.timestamp())] < published


def handling_disorder(effects: Iterable[tuple[str, str, str, str]]) -> list[str]:
    """Return the effects that a process wrote behind those of a later event of the stream.

    What is given of each is the listener, the API, the process and the stream id.
    """
    disorder = []
    last: dict[tuple[str, str, str], tuple[int, ...]] = {}
    for listener, api_name, run, stream_id in effects:
        place = tuple(map(int, stream_id.split("-")))
        if place < last.get((listener, api_name, run), place):
            disorder.append(f"{listener}: {stream_id} of {api_name} handled late by process {run}")
        else:
            last[listener, api_name, run] = place
    return disorder


def traces(sent: Sent) -> str:
    """Return what is left of an event in the package's own tables."""
    staged = OutboxEvent.objects.filter(payload__contains=f'"sent":{sent.pk},').first()
    if staged is None:
        return "no row in the outbox"
    return f"event {staged.pk}, published at {staged.published_at}, due at {staged.due_at}"
