"""The measured figures, which are kept in one file with the machine that they were measured on."""

from pathlib import Path

import msgspec

PATH = Path(__file__).with_name("figures.json")

PAYLOADS = 100, 1_000
"""Bytes of JSON of the payloads with which sizes are measured; what is between and beyond them is on a line."""


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """CPU time of one event in microseconds, on one core of each."""

    python: float
    redis: float = 0.0
    postgresql: float = 0.0


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of one event, with the two payloads of PAYLOADS."""

    small: float
    large: float

    def of(self, payload: int) -> float:
        small, large = PAYLOADS
        return self.small + (self.large - self.small) * (payload - small) / (large - small)


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    machine: dict[str, str]
    command: str
    date: str
    fire: Cost
    on_commit: Cost
    """Without the transaction around it; with the share of the relay, which marks the row."""
    handle: Cost
    """With the inbox, and a handler that does nothing."""
    handle_without_inbox: Cost
    delete: Cost
    """Deleting a row that is old."""
    stream: Size
    outbox: Size
    """A row with its entries in the indexes."""
    inbox: float
    failed: Size
    confirmation: float


def read(path: Path = PATH) -> Figures:
    return msgspec.json.decode(path.read_bytes(), type=Figures)


def write(figures: Figures, path: Path = PATH) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(figures), indent=1) + b"\n")
