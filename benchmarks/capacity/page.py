"""docs/capacity.md shows what the commands in it print."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "capacity.md"

_BLOCK = re.compile(
    r"^(```console\n\$ python -m benchmarks capacity ?([^\n]*)\n)(.*?)(?=^```$)", re.MULTILINE | re.DOTALL
)


def updated(text: str, output: Callable[[list[str]], str]) -> str:
    """Return a page with the output of each command in it; `output` takes the command's arguments."""
    return _BLOCK.sub(lambda block: f"{block[1]}{output(shlex.split(block[2]))}\n", text)
