"""The tables, each with its queries: processed and failed events, the outbox, consumer groups, and retry requests.

The states of an outbox event are in `outbox_event`, those of a failed event in `failed_event_queryset`.
"""

from .consumer_group import ConsumerGroup, ConsumerGroupQuerySet
from .failed_event import FailedEvent
from .failed_event_queryset import FailedEventQuerySet
from .outbox_event import Claim, OutboxEvent, OutboxEventQuerySet, QueuePosition
from .processed_event import ProcessedEvent, stored_group
from .retry_request import RetryRequest, RetryRequestQuerySet, new_retry_request

__all__ = [
    "Claim",
    "ConsumerGroup",
    "ConsumerGroupQuerySet",
    "FailedEvent",
    "FailedEventQuerySet",
    "OutboxEvent",
    "OutboxEventQuerySet",
    "ProcessedEvent",
    "QueuePosition",
    "RetryRequest",
    "RetryRequestQuerySet",
    "new_retry_request",
    "stored_group",
]
