"""Durations as people read them."""

import math

_UNITS = ((86400, "days"), (3600, "h"), (60, "min"))


def duration(seconds: float) -> str:
    """Return a duration in its largest sensible unit, such as "75 s" or "3 h"."""
    if math.isinf(seconds):
        return "unknown"
    for unit, name in _UNITS:
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.0f} s" if seconds >= 10 or seconds == int(seconds) else f"{seconds:.2g} s"
