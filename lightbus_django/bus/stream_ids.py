"""Stream ids: milliseconds and a sequence number."""


def id_key(stream_id: str) -> tuple[int, int]:
    """Return the sort key of a stream id. "0" is short for "0-0"."""
    milliseconds, _, sequence = stream_id.partition("-")
    return int(milliseconds), int(sequence or 0)


def previous_id(stream_id: str) -> str:
    """Return the greatest stream id that is smaller."""
    milliseconds, sequence = id_key(stream_id)
    return f"{milliseconds}-{sequence - 1}" if sequence else f"{milliseconds - 1}-{2**64 - 1}"
