"""What came of a scenario: all samples, and what they say."""

from pathlib import Path
from statistics import median
from typing import Literal, NamedTuple

import msgspec

from .measures import MEASURES, Sample

Kind = Literal["ratio", "difference", "value"]


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be reached by the median over the rounds of a subject's value, or of what it is to the reference's."""

    subject: str = "ours"
    measure: str = "rate"
    kind: Kind = "ratio"
    database: str | None = None
    """On which it is to be reached, if not on all."""
    at_least: float | None = None
    at_most: float | None = None

    def __str__(self) -> str:
        measure = MEASURES[self.measure]
        bound = f"≥ {self.at_least:,g}" if self.at_least is not None else f"≤ {self.at_most:,g}"
        return f"{measure.name} {bound} {'' if self.kind == 'ratio' else measure.unit}".strip()

    def is_met(self, value: float) -> bool:
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)


class Spread(NamedTuple):
    """The median of some rounds, and the range of all of them."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        return cls(median(values), min(values), max(values))


class Row(msgspec.Struct):
    """A subject, and what each of its runs gave, in the order of the rounds."""

    key: str
    label: str
    samples: list[Sample] = []
    failure: str = ""
    """What the run said that ended its turns."""

    def values(self, measure: str) -> list[float]:
        return [MEASURES[measure].read(sample) for sample in self.samples]

    def spread(self, measure: str) -> Spread:
        return Spread.of(self.values(measure))


class Result(msgspec.Struct, kw_only=True):
    """A scenario on one database."""

    scenario: str
    title: str
    database: str | None
    reference: str | None
    measures: tuple[str, ...]
    targets: tuple[Target, ...]
    rows: list[Row]
    machine: dict[str, str]
    command: str
    date: str

    @property
    def name(self) -> str:
        return f"{self.scenario}-{self.database}" if self.database else self.scenario

    @property
    def rounds(self) -> int:
        return max(len(row.samples) for row in self.rows)

    @property
    def comparisons(self) -> list[tuple[str, Kind]]:
        """What is compared with the reference, and how: what has a target, else the first measure by its ratio."""
        if self.reference is None or not self.row(self.reference).samples:
            return []
        targets = [(target.measure, target.kind) for target in self.targets if target.kind != "value"]
        return list(dict.fromkeys(targets)) or [(self.measures[0], "ratio")]

    def row(self, key: str) -> Row:
        return next(row for row in self.rows if row.key == key)

    def compared(self, row: Row, measure: str, kind: Kind) -> Spread:
        """Return what a row's values are, or what they are to the reference's of the same round."""
        values = row.values(measure)
        if kind == "value" or self.reference is None:
            return Spread.of(values)
        pairs = list(zip(values, self.row(self.reference).values(measure), strict=False))
        if kind == "difference":
            return Spread.of([value - reference for value, reference in pairs])
        return Spread.of([value / reference for value, reference in pairs])

    def verdicts(self, row: Row) -> list[tuple[Target, bool]]:
        """Return the targets of a row, each with whether it is met; none that can't be judged, for a run failed."""
        return [
            (target, target.is_met(self.compared(row, target.measure, target.kind).median))
            for target in self.targets
            if target.subject == row.key and row.samples
            if target.kind == "value" or (target.measure, target.kind) in self.comparisons
        ]


def write(result: Result, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{result.name}.json").write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1))


def read(folder: Path) -> list[Result]:
    """Return all results that are in a folder, in the order of their names."""
    return [msgspec.json.decode(path.read_bytes(), type=Result) for path in sorted(folder.glob("*.json"))]
