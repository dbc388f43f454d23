"""`--processes`: the children run the command itself, whatever started their parent."""

import subprocess
import sys
import textwrap
import zipapp
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.conftest import ROOT, process_environment

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])

OPTIONS = ["lightbus_listen", "--processes=2", "--process-name=p", "--burst"]

# A tree of processes that start each other ends at the third level.
SETTINGS = f"""
import os, sys
os.environ["DEPTH"] = str(depth := int(os.environ.get("DEPTH", 0)) + 1)
assert depth < 4, "a fork bomb"
sys.path.append({str(ROOT)!r})
from tests.settings import *
flags = [sys.flags.optimize, sys.flags.isolated, sys.stdout.write_through, sorted(sys._xoptions), sys.warnoptions]
os.write(1, (" ".join(["flags", repr(flags)]) + os.linesep).encode())  # at once, for others write as well
"""

CALL = """
import os, sys
sys.path.append(os.environ["ELSEWHERE"])
os.environ["DJANGO_SETTINGS_MODULE"] = "own_settings"
import django
from django.core.management import call_command
django.setup()
call_command("lightbus_listen", processes=2, process_name="p", burst=True)
import signal
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
"""

MANAGE = """
import os, sys
sys.path.append(os.environ["ELSEWHERE"])
from django.core.management import execute_from_command_line
os.environ["DJANGO_SETTINGS_MODULE"] = "own_settings"
execute_from_command_line(sys.argv)
"""


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A directory with settings that only the parent's own sys.path leads to."""
    directory = tmp_path / "elsewhere"
    directory.mkdir()
    (directory / "own_settings.py").write_text(SETTINGS)
    return directory


@pytest.fixture
def python(lightbus_url: str, r: redis.Redis, tmp_path: Path, elsewhere: Path) -> Callable[..., tuple[int, str]]:
    """Run Python in an empty directory; return its exit code and its output."""
    here = tmp_path / "here"
    here.mkdir()

    def run(*arguments: Any, cwd: Path = here, **environment: str) -> tuple[int, str]:
        variables = {**process_environment(lightbus_url), "ELSEWHERE": str(elsewhere), **environment}
        for name in ("PYTHONPATH", "DJANGO_SETTINGS_MODULE"):
            if name not in environment:
                variables.pop(name, None)
        process = subprocess.run(
            [sys.executable, *arguments],
            cwd=cwd,
            env=variables,
            capture_output=True,
            check=False,
            text=True,
            timeout=60,
        )
        return process.returncode, process.stdout + process.stderr

    return run


def consumers(r: redis.Redis) -> set[str]:
    return {row["name"] for row in r.xinfo_consumers("shop.*:stream", "price-monitor-book")}


def script(directory: Path, name: str, text: str) -> Path:
    path = directory / name
    path.write_text(textwrap.dedent(text))
    return path


def django_admin() -> Path:
    return Path(sys.executable).parent / "django-admin"


KINDS = {
    "a script": lambda directory: [script(directory, "go.py", CALL)],
    "manage.py": lambda directory: [script(directory, "manage.py", MANAGE), *OPTIONS],
    "a manage.py that changes the directory": lambda directory: [
        "../sub/manage.py" if script(directory, "manage.py", f"import os; os.chdir('/')\n{MANAGE}") else "",
        *OPTIONS,
    ],
    "python -c": lambda directory: ["-c", CALL],
    "python -I": lambda directory: ["-I", "-c", CALL],
    "python -m django": lambda directory: ["-m", "django", *OPTIONS, "--settings=own_settings", "--pythonpath=.."],
    "django-admin": lambda directory: [django_admin(), *OPTIONS, "--settings=own_settings", "--pythonpath=.."],
    "python -m manage": lambda directory: ["-m", "manage", *OPTIONS] if script(directory, "manage.py", MANAGE) else [],
    "a command line of its own": lambda directory: [
        "-c",
        MANAGE.replace("sys.argv", repr(["manage.py", *OPTIONS])),
    ],
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_children_run_the_command(
    kind: str, python: Callable[..., tuple[int, str]], r: redis.Redis, tmp_path: Path, elsewhere: Path
) -> None:
    directory = elsewhere / "sub"
    directory.mkdir()
    code, output = python(*KINDS[kind](directory), cwd=directory)
    assert code == 0, output
    assert consumers(r) == {"p-1", "p-2"}
    assert output.count("flags") == 3, output


def test_an_application_in_a_zip_file(
    python: Callable[..., tuple[int, str]], r: redis.Redis, tmp_path: Path, elsewhere: Path
) -> None:
    script(elsewhere, "__main__.py", MANAGE.replace('os.environ["ELSEWHERE"]', "'nowhere'"))
    zipapp.create_archive(elsewhere, tmp_path / "here" / "app.pyz")
    code, output = python("app.pyz", *OPTIONS)
    assert code == 0, output
    assert consumers(r) == {"p-1", "p-2"}


@pytest.mark.parametrize(
    "flags",
    [["-O", "-u", "-Xdev", "-Wignore::ImportWarning"], ["-OO", "-Xutf8"], ["-I", "-u", "-Xpycache_prefix=/tmp/none"]],
    ids=" ".join,
)
def test_the_interpreter_has_the_same_flags(flags: list[str], python: Callable[..., tuple[int, str]]) -> None:
    code, output = python(*flags, "-c", CALL)
    assert code == 0, output
    lines = [line for line in output.splitlines() if line.startswith("flags")]
    assert len(lines) == 3
    assert len(set(lines)) == 1, lines


def test_the_options_are_the_same(python: Callable[..., tuple[int, str]], r: redis.Redis) -> None:
    options = 'service_name="other", listener=["book"], stop_timeout=7, verbosity=0, leave=True, '
    code, output = python("-c", CALL.replace("processes=2", options + "processes=2"))
    assert code == 0, output
    (group,) = r.xinfo_groups("shop.*:stream")
    assert group["name"] == "other-book"
    assert {row["name"] for row in r.xinfo_consumers("shop.*:stream", "other-book")} == {"nobody"}
    assert "service other" not in output


def test_settings_of_the_script_itself_are_refused(python: Callable[..., tuple[int, str]], r: redis.Redis) -> None:
    code, output = python("-c", CALL.replace("django.setup()", CONFIGURE))
    assert code == 1
    assert "settings.configure()" in output.splitlines()[-1]
    assert not r.keys()


CONFIGURE = """
import own_settings
from django.conf import settings
settings.configure(**{name: value for name, value in vars(own_settings).items() if name.isupper()})
django.setup()
"""


def test_listeners_of_the_script_itself_are_refused(python: Callable[..., tuple[int, str]], r: redis.Redis) -> None:
    code, output = python("-c", CALL.replace("django.setup()", LISTEN))
    assert code == 1
    assert "__main__.handler" in output.splitlines()[-1]
    assert not r.keys()


LISTEN = """
django.setup()
from lightbus_django import listens_to
@listens_to("shop.order_placed")
def handler(event): ...
"""


def test_a_child_starts_no_children(python: Callable[..., tuple[int, str]], elsewhere: Path, r: redis.Redis) -> None:
    """Not even if what it imports calls the command."""
    app = elsewhere / "eager"
    app.mkdir()
    script(app, "__init__.py", "")
    script(
        app,
        "listeners.py",
        """
        from django.core.management import call_command
        call_command("lightbus_listen", processes=2, process_name="p", burst=True, skip_checks=True)
        """,
    )
    script(elsewhere, "own_settings.py", f'{SETTINGS}\nINSTALLED_APPS.append("eager")\n')
    code, output = python("-c", MANAGE, "check")
    assert code == 1
    assert "a fork bomb" not in output
    assert output.count("flags") == 3
    assert "would start processes of its own" in output
