"""Admin pages: the bus, one event, processed events, failed events, and the outbox."""

from .bus import BusAdmin
from .failed import FailedEventAdmin
from .outbox import OutboxEventAdmin
from .processed import ProcessedEventAdmin

__all__ = ["BusAdmin", "FailedEventAdmin", "OutboxEventAdmin", "ProcessedEventAdmin"]
