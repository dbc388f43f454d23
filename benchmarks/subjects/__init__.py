"""What is measured: functions that do so many events and return a sample, ours beside their references."""


class Miscounted(Exception):
    """A subject did not do what it was to be measured at."""
