"""A real Lightbus service, in processes of its own. Lightbus is installed once, into .tox/, and never imported here."""

import json
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.conftest import ROOT, eventually

REQUIREMENT = "lightbus==1.3.0a6"
BUS_SERVICE = Path(__file__).resolve().parent / "bus_service"

# The streams that its listener reads, by `stream_use`.
PRICES = {"per_api": "prices.*:stream", "per_event": "prices.changed:stream"}
SHOP = {"per_api": "my_company.shop.*:stream", "per_event": "my_company.shop.order_placed:stream"}


@pytest.fixture(scope="session")
def lightbus_home() -> Path:
    """A virtual environment that has Lightbus, and a Python like ours."""
    python = f"py{sys.version_info.major}.{sys.version_info.minor}"
    home = ROOT / ".tox" / f"{REQUIREMENT.replace('==', '-')}-{python}"
    if not (home / "bin" / "python").exists():
        shutil.rmtree(home, ignore_errors=True)
        install_lightbus(home)
    return home


def install_lightbus(home: Path) -> None:
    """Make the virtual environment, under another name until it is complete."""
    home.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{home.name}-", dir=home.parent) as scratch:
        unfinished = Path(scratch) / "venv"
        venv.create(unfinished, with_pip=True, symlinks=True)
        pip = [unfinished / "bin" / "python", "-m", "pip", "--quiet", "--disable-pip-version-check", "--retries", "1"]
        answer = subprocess.run([*pip, "install", REQUIREMENT], capture_output=True, text=True, check=False)
        if answer.returncode != 0:
            pytest.skip(f"pip can't install {REQUIREMENT}: {(answer.stderr.strip() or '?').splitlines()[-1]}")
        with suppress(OSError):  # another test run has put its own there
            unfinished.rename(home)


class LightbusService:
    """The service in bus_service/: `lightbus run`, and other processes that fire its events."""

    group = "stock_service-write_down"

    def __init__(self, home: Path, directory: Path, url: str, stream_use: str, client: redis.Redis) -> None:
        self._python = home / "bin" / "python"
        self._lightbus = home / "bin" / "lightbus"
        self._streams = [PRICES[stream_use], SHOP[stream_use]]
        self._client = client
        self._handled = directory / "handled.jsonl"
        self._log = directory / "lightbus.log"
        self._process: subprocess.Popen[bytes] | None = None
        config = directory / "lightbus.json"
        config.write_text(json.dumps(configuration(url, stream_use)))
        self._environment = {
            "LIGHTBUS_CONFIG": str(config),
            "PYTHONPATH": str(BUS_SERVICE),
            "HANDLED": str(self._handled),
        }

    def execute(self, code: str) -> None:
        """Run Python code in a process of the service, such as `bus.my_company.shop.order_placed.fire(**VALUES)`."""
        code = f"from bus import bus\nfrom samples import VALUES\n{code}"
        answer = subprocess.run(
            [self._python, "-c", code], env=self._environment, capture_output=True, text=True, timeout=30, check=False
        )
        assert answer.returncode == 0, answer.stdout + answer.stderr

    def run(self) -> None:
        """Start `lightbus run` and wait until its listener listens."""
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                # The script by way of its Python: its first line names the place where the environment was made.
                [self._python, self._lightbus, "run", "--bus", "bus"],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.wait_until(lambda: all(map(self._listens_to, self._streams)))

    def _listens_to(self, stream: str) -> bool:
        groups = self._client.xinfo_groups(stream) if self._client.exists(stream) else []
        return any(group["name"] == self.group and group["consumers"] for group in groups)

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Wait as `eventually` does, but not for a process that has ended."""

        def check() -> object:
            assert self.is_running(), f"lightbus run has ended:\n{self._log.read_text()}"
            return condition()

        eventually(check)

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()

    @property
    def handled(self) -> list[dict[str, Any]]:
        """What its listener wrote down so far."""
        if not self._handled.exists():
            return []
        lines = self._handled.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines[:-1]]


def configuration(url: str, stream_use: str) -> dict[str, Any]:
    redis_at_url = {"redis": {"url": url}}
    return {
        "service_name": "stock_service",
        "process_name": "stock-1",
        "bus": {"log_level": "warning", "schema": {"transport": redis_at_url}},
        "apis": {
            "default": {
                "event_transport": {"redis": {"url": url, "stream_use": stream_use}},
                "rpc_transport": redis_at_url,
                "result_transport": redis_at_url,
            }
        },
    }


@pytest.fixture
def stream_use() -> str:
    """How both sides name their streams; a test may be parametrized with another value."""
    return "per_api"


@pytest.fixture
def lightbus_service(
    lightbus_home: Path,
    tmp_path: Path,
    lightbus_url: str,
    stream_use: str,
    r: redis.Redis,
    lightbus: Callable[..., None],
) -> Iterator[LightbusService]:
    """A Lightbus service beside us, of which no process runs yet."""
    lightbus(STREAM_USE=stream_use)
    service = LightbusService(lightbus_home, tmp_path, lightbus_url, stream_use, r)
    yield service
    service.kill()
