"""A child of `--processes N`: its command line and environment, and how it stops with its parent."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

from django.conf import settings

from lightbus_django.bus.sandbox import NO_BUS, keeps_events
from lightbus_django.exceptions import ConfigurationError
from lightbus_django.listening.registry import registry

PARENT = "LIGHTBUS_PARENT"
"""The environment variable that tells a child its parent's process id."""

# Not the parent's own command line, which may be a script that starts more processes. sys.path is an argument
# because Python ignores PYTHONPATH with -I.
_COMMAND = (
    "import json, os, sys; sys.path[:] = json.loads(sys.argv.pop(1)); "
    "package = 'configurations' if os.environ.get('DJANGO_CONFIGURATION') else 'django.core'; "
    "management = __import__(package + '.management', fromlist=['management']); "
    "management.execute_from_command_line(['manage.py', *sys.argv[1:]])"
)


class ChildProcess:
    """A `lightbus_listen` process that can be started again after it has ended."""

    def __init__(self, name: str, options: Sequence[str], environment: dict[str, str]) -> None:
        """Prepare the process.

        Args:
            name: its process name.
            options: further options of the command.
            environment: the result of `child_environment`.
        """
        self.name = name
        self.started_at = 0.0
        """Monotonic time of the last start, in seconds."""
        self._command = [
            *(sys.executable, *_interpreter_flags(), "-c", _COMMAND, json.dumps(list(map(str, sys.path)))),
            *("lightbus_listen", *options, f"--process-name={name}", "--stop-with-parent"),
        ]
        self._environment = environment
        self._process: subprocess.Popen[bytes]

    def start(self) -> None:
        self.started_at = time.monotonic()
        # The child stops when the pipe closes. In a session of its own, Ctrl-C in the terminal reaches only the parent.
        self._process = subprocess.Popen(
            self._command, env=self._environment, stdin=subprocess.PIPE, start_new_session=True
        )

    @property
    def returncode(self) -> int | None:
        """The exit code, or the negative number of the signal that killed it; None while it runs."""
        return self._process.poll()

    def stop(self) -> None:
        """Let it stop cleanly, without waiting for it."""
        if self._process.stdin:
            self._process.stdin.close()

    def kill(self) -> None:
        self._process.kill()

    def wait(self) -> int:
        """Wait for the end; return the exit code as a shell would."""
        code = self._process.wait()
        return code if code >= 0 else 128 - code


def stop_with_parent(stop: Callable[[], None]) -> None:
    """In a child process, call `stop` once the parent asks for it or has ended in any way.

    The parent sends no signal, because systemd may have sent one to the children already, and a second signal ends a
    process at once.
    """

    def wait() -> None:
        os.read(0, 1)  # returns when the parent's end of the pipe closes
        stop()

    threading.Thread(target=wait, name="parent", daemon=True).start()


def child_environment() -> dict[str, str]:
    """Return the environment variables of child processes.

    Raises:
        ConfigurationError: children could not have the settings or the listeners of this process.
    """
    if os.environ.get(PARENT) == str(os.getppid()):
        raise ConfigurationError(
            "A child process of lightbus_listen would start processes of its own, because a module that Django imports "
            "at startup calls the command. Call it in a script that is not imported."
        )
    if keeps_events():
        raise ConfigurationError(NO_BUS)
    if not sys.executable:
        raise ConfigurationError("--processes needs a Python interpreter; this process runs in another program.")
    module = getattr(settings, "SETTINGS_MODULE", None)
    if not module:
        raise ConfigurationError(
            "--processes needs settings in a module that DJANGO_SETTINGS_MODULE names, because child processes don't "
            "get those of settings.configure() or override_settings()."
        )
    for listener in registry:
        if listener.handler.__module__ == "__main__":
            raise ConfigurationError(
                f"--processes can't run the listener {listener.path}, because child processes don't run this script: "
                "move it to the listeners.py of an installed app."
            )
    return {**os.environ, "DJANGO_SETTINGS_MODULE": module, PARENT: str(os.getpid())}


def _interpreter_flags() -> list[str]:
    """Return the options that this interpreter was started with."""
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    # Some options are missing there; repeating the others is harmless.
    flags += [f"-X{name}" if value is True else f"-X{name}={value}" for name, value in sys._xoptions.items()]
    if getattr(sys.__stdout__, "write_through", False):
        flags.append("-u")
    return flags
