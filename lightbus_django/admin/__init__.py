"""Admin pages: what was processed, what failed and why, what waits to be published."""

from .failed import FailedEventAdmin
from .outbox import OutboxEventAdmin
from .processed import ProcessedEventAdmin

__all__ = ["FailedEventAdmin", "OutboxEventAdmin", "ProcessedEventAdmin"]
