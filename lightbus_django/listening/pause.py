"""Whether a listener rests, as somebody asked for with `lightbus_pause` or on a page of the admin."""


class Pause:
    """The pause of one consumer. The consumer's thread begins it as it joins, the jobs of its database later on."""

    def __init__(self) -> None:
        self.by = ""
        """Who asked for the pause."""
        self.is_wanted = False
        """Whether the consumer should rest; any thread may read it."""

    def begin(self, by: str) -> None:
        self.by = by
        self.is_wanted = True

    def end(self) -> None:
        self.is_wanted = False
