"""Tracebacks of which the frames of libraries are folded."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from lightbus_django.listening.tracebacks import is_library

_FRAME = re.compile(r'(?P<margin>[ |+-]*)  File "(?P<file>[^"]+)", line \d+')


class Part(NamedTuple):
    """A part of a traceback."""

    is_library: bool
    text: str
    frames: int
    """The number of frames in it."""


def split(traceback: str) -> list[Part]:
    """Return the parts of a traceback: frames of libraries that follow each other are one part."""
    parts: list[Part] = []
    for part in _blocks(traceback.rstrip("\n")):
        if parts and parts[-1].is_library == part.is_library:
            last = parts.pop()
            parts.append(Part(part.is_library, f"{last.text}\n{part.text}", last.frames + part.frames))
        else:
            parts.append(part)
    return parts


def _blocks(traceback: str) -> Iterator[Part]:
    """Yield each frame with its lines, and each line in between."""
    lines: list[str] = []
    margin = ""
    of_library = False
    for line in traceback.split("\n"):
        start = _FRAME.match(line)
        if lines and start is None and line.startswith((f"{margin}    ", f"{margin}  [")):
            lines.append(line)
            continue
        if lines:
            yield Part(of_library, "\n".join(lines), 1)
            lines = []
        if start is None:
            yield Part(False, line, 0)
        else:
            lines, margin, of_library = [line], start["margin"], is_library(start["file"])
    if lines:
        yield Part(of_library, "\n".join(lines), 1)
