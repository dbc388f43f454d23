"""Renamed listeners: the group of the new name takes the place, the keys and the failed events of the old one."""

from collections.abc import Iterator

from django.db import router, transaction
from django.db.models import Exists, OuterRef

from lightbus_django.database.errors import transient_errors
from lightbus_django.events.ids import event_key
from lightbus_django.listening.listener import Listener
from lightbus_django.models import ConsumerGroup, FailedEvent, ProcessedEvent, stored_group

CHUNK = 5000
"""Number of keys that are moved in one transaction."""


def move_records(old: str, new: str, listener: Listener) -> Iterator[int]:
    """Move what the listener's database knows of a group to another one; yield how many rows, step by step.

    An event that the new group has handled as well keeps the new group's key. The method can be repeated if it was
    interrupted.

    Args:
        old: name of the group before.
        new: name of the listener's group now.
        listener: the listener, which tells the database.
    """
    using = listener.using or router.db_for_write(ProcessedEvent)
    before, after = stored_group(old, using), stored_group(new, using)
    for model in (ProcessedEvent, FailedEvent):
        rows = model._default_manager.using(using).filter(consumer_group=before)
        twice = model._default_manager.filter(consumer_group=after, event_id=OuterRef("event_id"))
        while True:
            with transient_errors(using), transaction.atomic(using=using):
                keys = list(rows.order_by("pk").values_list("pk", flat=True)[:CHUNK])
                if not keys:
                    break
                chunk = model._default_manager.using(using).filter(pk__in=keys)
                doubles = list(chunk.filter(Exists(twice)).values_list("pk", flat=True))
                if model is FailedEvent:
                    FailedEvent.objects.using(using).filter(pk__in=doubles).leave_requests()
                model._default_manager.using(using).filter(pk__in=doubles).delete()
                chunk.update(consumer_group=after)
            yield len(keys)
    with transient_errors(using), transaction.atomic(using=using):
        for row in ConsumerGroup.objects.using(using).filter(consumer_group=old):
            ConsumerGroup.objects.using(using).filter(pk=row.pk).delete()
            row.pk = event_key(f"{row.stream}/{new}")
            row.consumer_group, row.listener_name = new, listener.listener_name
            row.save(using=using)
    yield 0
