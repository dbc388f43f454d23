"""Mischief: what goes wrong, when, and for how long, as a seed has it."""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from django.db import DatabaseError, connection

from lightbus_django.bus.server import PAUSE
from lightbus_django.conf import Settings
from tests.own_postgresql import OwnPostgreSQL
from tests.proxies import Proxy

from .cluster import ChaosCluster
from .processes import Child, Producer, Worker
from .servers import Redis

DISTURBED = 5.0
"""Seconds after trouble of the database in which events may be set aside."""

NOTICED = PAUSE + 3.0
"""Seconds in which each process has noticed that Redis is back."""

Mischief = Iterator[float]
"""Does a bit of it, and yields the seconds until it is to go on."""

Target = Child | ChaosCluster


class Storm:
    """Troubles the processes as `step` is called again and again. What one mischief has in hand, no other takes."""

    def __init__(
        self,
        seed: str,
        *,
        redis: Redis | ChaosCluster,
        workers: Sequence[Worker],
        producers: Sequence[Producer],
        postgresql: OwnPostgreSQL | None,
        proxy: Proxy,
        settings: Settings,
        pause: float,
        log: Path,
    ) -> None:
        self.random = random.Random(f"{seed} storm")
        self.redis = redis
        self.workers = workers
        self.producers = producers
        self.postgresql = postgresql
        self.proxy = proxy
        self.timeout = settings.acknowledgement_timeout
        self.pause = pause
        self.counts: Counter[str] = Counter()
        self.troubles: list[str] = []
        self.disturbances: list[tuple[float, float]] = []
        """From when to when transactions may have met trouble, so that their events were set aside."""
        self.outages: list[tuple[float, float]] = []
        """From when to when processes may have taken Redis for down."""
        self.log = log
        self._kinds: dict[Callable[..., Mischief], int] = {
            self.kill_worker: 4,
            self.stop_worker: 2,
            self.freeze_worker: 2,
            self.kill_connections: 2,
            self.silence_connections: 2,
            self.kill_producer: 1,
            self.freeze_producer: 1,
        }
        if isinstance(redis, Redis):
            self._kinds |= {self.restart_redis: 1, self.kill_redis: 1, self.freeze_redis: 1}
        else:
            self._kinds |= {self.fail_over_master: 2, self.kill_master: 2, self.freeze_master: 1, self.migrate_slot: 3}
        if postgresql is not None:
            self._kinds |= {self.crash_postgresql: 3, self.kill_postgresql: 2, self.kill_backend: 2}
        self._deck: list[Callable[..., Mischief]] = []
        self._next_at = 0.0
        self._going: list[tuple[float, str, Target | None, Mischief]] = []

    def step(self, now: float, *, more: bool = True) -> bool:
        """Go on with what is going on, and begin more when it is time; return whether something is going on."""
        going, self._going = self._going, []
        for due_at, kind, target, mischief in going:
            if due_at > now:
                self._going.append((due_at, kind, target, mischief))
            elif (pause := next(mischief, None)) is not None:
                self._going.append((now + pause, kind, target, mischief))
            else:
                self._write(f"{kind}: over", target)
        if more and now >= self._next_at:
            self._begin(now)
            self._next_at = now + self.random.uniform(0, 2 * self.pause)
        return bool(self._going)

    def _begin(self, now: float) -> None:
        if not self._deck:  # like cards, so that a short storm has something of each
            self._deck = self.random.sample([*self._kinds], sum(self._kinds.values()), counts=[*self._kinds.values()])
        kind = self._deck.pop()
        target = self._target(kind.__name__.rpartition("_")[2])
        if target is not None and (self.is_at(target) or not target.runs):
            return  # it has enough to do with what happens to it already
        name = kind.__name__.replace("_", " ")
        self.counts[name] += 1
        self._write(name, target)
        self._going.append((now, name, target, kind(target)))

    def _write(self, what: str, target: Target | None) -> None:
        with self.log.open("a") as log:
            log.write(f"{datetime.now(UTC):%H:%M:%S.%f} {what} {target.log.name if target else ''}\n")

    def _target(self, kind: str) -> Target | None:
        """Draw the one that it happens to."""
        if kind in ("connections", "postgresql", "backend"):
            return None
        if kind in ("redis", "master", "slot"):
            return self.redis
        return self.random.choice(self.workers if kind == "worker" else self.producers)

    def is_at(self, one: Target) -> bool:
        """Whether some mischief has this process, or the cluster, in hand."""
        return any(target is one for _, _, target, _ in self._going)

    # --- What may happen ----------------------------------------------------------------------

    def kill_worker(self, worker: Worker) -> Mischief:
        worker.kill()
        yield self.random.uniform(0, 2)
        worker.start()

    def stop_worker(self, worker: Worker) -> Mischief:
        yield from worker.stop()
        if worker.exit_code != 0:
            self.troubles.append(f"{worker.log.name}: stopped with exit code {worker.exit_code}, not 0")
            worker.kill()
        yield self.random.uniform(0, 2)
        worker.start()

    def freeze_worker(self, worker: Worker) -> Mischief:
        yield from self._freeze(worker, 2 * self.timeout)

    def restart_redis(self, redis: Redis) -> Mischief:
        yield from self._outage(redis, self._restart(redis, redis.stop()))

    def kill_redis(self, redis: Redis) -> Mischief:
        redis.kill()
        yield from self._outage(redis, self._restart(redis, ()))

    def freeze_redis(self, redis: Redis) -> Mischief:
        yield from self._outage(redis, self._freeze(redis, 5))

    def _restart(self, redis: Redis, stop: Iterable[float]) -> Mischief:
        yield from stop
        yield self.random.uniform(0, 2)
        redis.start()

    def _outage(self, redis: Redis | ChaosCluster, mischief: Mischief) -> Mischief:
        began_at = time.time()
        yield from mischief
        while not redis.answers():  # it loads its data
            yield 0.1
        self.outages.append((began_at - 1, time.time() + NOTICED))

    def fail_over_master(self, cluster: ChaosCluster) -> Mischief:
        yield from self._failover(cluster, cluster.fail_over_master())

    def kill_master(self, cluster: ChaosCluster) -> Mischief:
        yield from self._failover(cluster, cluster.kill_master())

    def freeze_master(self, cluster: ChaosCluster) -> Mischief:
        yield from self._failover(cluster, cluster.freeze_master())

    def migrate_slot(self, cluster: ChaosCluster) -> Mischief:
        yield from self._failover(cluster, cluster.migrate_slot())

    def _failover(self, cluster: ChaosCluster, mischief: Mischief) -> Mischief:
        """Groups may go back in it, so that events are delivered for the first time once more."""
        began_at = time.time()
        yield from self._outage(cluster, mischief)
        self.disturbances.append((began_at, self.outages[-1][1]))

    def kill_connections(self, _: None) -> Mischief:
        """All to our database, but the one that says so."""
        self._disturb()
        with suppress(DatabaseError), connection.cursor() as cursor:
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        yield 0

    def silence_connections(self, _: None) -> Mischief:
        """Of all workers, to the first database: nothing comes through any more, until they break in the end."""
        began_at = time.time()
        self.proxy.silence()
        yield self.random.uniform(0.5, 3 * self.timeout)
        self.proxy.drop()
        self._disturb(began_at)

    def crash_postgresql(self, _: None) -> Mischief:
        """What was committed without waiting for the disk is gone."""
        yield from self._end_postgresql(signal.SIGQUIT)

    def kill_postgresql(self, _: None) -> Mischief:
        yield from self._end_postgresql(signal.SIGKILL)

    def _end_postgresql(self, signum: int) -> Mischief:
        assert self.postgresql
        began_at = time.time()
        self.postgresql.stop(signum)
        self.postgresql.start()
        self._disturb(began_at)
        yield 0

    def _disturb(self, began_at: float | None = None) -> None:
        now = time.time()
        self.disturbances.append((began_at or now, now + DISTURBED))

    def kill_backend(self, _: None) -> Mischief:
        """The server ends all others then, and recovers as after a crash."""
        self._disturb()
        with suppress(DatabaseError, ProcessLookupError), connection.cursor() as cursor:
            cursor.execute(
                "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            if pids := sorted(pid for (pid,) in cursor.fetchall()):
                os.kill(self.random.choice(pids), signal.SIGKILL)
        yield 0

    def kill_producer(self, producer: Producer) -> Mischief:
        producer.kill()
        yield self.random.uniform(0, 1)
        producer.start()

    def freeze_producer(self, producer: Producer) -> Mischief:
        yield from self._freeze(producer, 3)

    def _freeze(self, child: Child, seconds: float) -> Mischief:
        child.freeze()
        yield self.random.uniform(0.2, seconds)
        child.thaw()
