"""Environments for what people would use instead, each with what its requirements file names."""

import hashlib
import subprocess
import sys
from pathlib import Path

from .databases import ROOT
from .servers import Unavailable

COMPETITORS = ROOT / "benchmarks" / "competitors"
DEFAULT_FOLDER = Path.home() / ".cache" / "lightbus_django-benchmarks"


def python_for(name: str, folder: Path) -> Path:
    """Return the Python of a competitor's environment, which is made if there is none for its requirements yet.

    Raises:
        Unavailable: it can't be made.
    """
    requirements = COMPETITORS / f"{name}.txt"
    directory = folder / f"{name}-{hashlib.sha256(requirements.read_bytes()).hexdigest()[:8]}"
    python = directory / "bin" / "python"
    ready = directory / "ready"
    if not ready.exists():
        print(f"making an environment for {name}: {directory}", file=sys.stderr)
        for command in (
            [sys.executable, "-m", "venv", "--clear", str(directory)],
            [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", str(requirements)],
        ):
            made = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
            if made.returncode:
                raise Unavailable(f"no environment for {name}: {made.stderr.strip()[-1000:]}")
        ready.touch()
    return python
