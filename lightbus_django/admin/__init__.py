"""Admin pages: processed events, failed events, and the outbox."""

from .failed import FailedEventAdmin
from .outbox import OutboxEventAdmin
from .processed import ProcessedEventAdmin

__all__ = ["FailedEventAdmin", "OutboxEventAdmin", "ProcessedEventAdmin"]
