"""Results as pictures: one SVG each, all in one style."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from .measures import MEASURES
from .report import title
from .results import Result, Row
from .servers import Unavailable

OURS, REFERENCE, OTHER, INK = "#0b6e4f", "#7a828a", "#b9c0c7", "#24292f"
WIDTH = 8.0
LABEL_WIDTH = 42
STYLE = {
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "axes.edgecolor": REFERENCE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e6e9ec",
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "font.size": 9,
    "svg.hashsalt": "benchmarks",  # so that the same result gives the same file
}


def draw(results: Sequence[Result], folder: Path) -> None:
    """Draw each result into `folder`.

    Raises:
        Unavailable: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        raise Unavailable("no plots: matplotlib is not installed, which comes with the extra [benchmarks]") from None
    with mpl.rc_context(STYLE):
        for result in results:
            if not any(row.samples for row in result.rows):
                continue
            figure = Figure(figsize=(WIDTH, _height(result)), layout="constrained")
            axes = figure.add_subplot()
            _kind(result)(axes, result)
            figure.suptitle(title(result).replace("`", ""), x=0.01, ha="left", fontsize=10, fontweight="bold")
            figure.savefig(folder / f"{result.name}.svg", metadata={"Date": None})


def _height(result: Result) -> float:
    return 1.1 + 0.42 * len(result.rows) if _kind(result) is _bars else 3.6


def _kind(result: Result) -> Any:
    sample = next(row.samples[0] for row in result.rows if row.samples)
    if "percentiles" in sample:
        return _percentiles
    return _looks if "looks" in sample else _bars


def _color(result: Result, row: Row) -> str:
    if row.key == result.reference:
        return REFERENCE
    has_ours = any(row.key == "ours" for row in result.rows)
    return OURS if row.key == "ours" or not has_ours else OTHER


def _bars(axes: Any, result: Result) -> None:
    """The medians of the first measure, and the range of all rounds."""
    measure = MEASURES[result.measures[0]]
    rows = [row for row in result.rows if row.samples]
    spreads = [row.spread(result.measures[0]) for row in rows]
    axes.barh(
        [fill(row.label, LABEL_WIDTH) for row in rows],
        [spread.median for spread in spreads],
        color=[_color(result, row) for row in rows],
        xerr=[[s.median - s.low for s in spreads], [s.high - s.median for s in spreads]] if result.rounds > 1 else None,
        error_kw={"ecolor": INK, "capsize": 2, "elinewidth": 0.8},
        height=0.62,
    )
    for number, spread in enumerate(spreads):
        axes.annotate(
            format(spread.median, measure.form), (spread.high, number), (5, 0), textcoords="offset points", va="center"
        )
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.12)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.set_xlabel(measure.title)


def _percentiles(axes: Any, result: Result) -> None:
    """What share of the events took how long, in each round."""
    for row in result.rows:
        for number, sample in enumerate(row.samples):
            shares = range(len(sample["percentiles"]))
            label = None if number else row.label
            axes.plot(sample["percentiles"], shares, color=_color(result, row), linewidth=1, alpha=0.8, label=label)
    axes.set_xscale("log")
    for formatter in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("milliseconds")
    axes.set_ylabel("% of the events")
    axes.legend(frameon=False)


def _looks(axes: Any, result: Result) -> None:
    """Memory over time."""
    (row,) = result.rows
    for sample in row.samples:
        times, worker, firing = zip(*sample["looks"], strict=True)
        minutes = [at / 60 for at in times]
        axes.plot(minutes, worker, color=OURS, label="worker")
        axes.plot(minutes, firing, color=REFERENCE, label="process that fires")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("minutes")
    axes.set_ylabel("resident memory, MB")
    axes.legend(frameon=False)
