"""Detects gevent and eventlet, which replace threads and sockets with their own."""

import sys

from lightbus_django.exceptions import ConfigurationError

_PATCHERS = {
    "gevent": ("gevent.monkey", "is_module_patched", "gevent.monkey.patch_all()"),
    "eventlet": ("eventlet.patcher", "is_monkey_patched", "eventlet.monkey_patch()"),
}
_MODULES = ("_thread", "thread", "threading", "socket", "select", "time")


def check_threads() -> None:
    """Raise ConfigurationError if threads or sockets are patched.

    In greenlets, an event loop would block the other listeners, and listeners would share database connections.
    """
    for library, (module, function, culprit) in _PATCHERS.items():
        if (patcher := sys.modules.get(module)) is None:
            continue
        if patched := [name for name in _MODULES if getattr(patcher, function)(name)]:
            raise ConfigurationError(
                f"lightbus_listen can't run where {library} has patched {', '.join(patched)}, because listeners need "
                f"real threads. Call {culprit} in the web server only, not in manage.py or a module of the project."
            )
