"""Whether gevent or eventlet has replaced threads and sockets by their own."""

import sys

from lightbus_django.exceptions import ConfigurationError

_PATCHERS = {
    "gevent": ("gevent.monkey", "is_module_patched", "gevent.monkey.patch_all()"),
    "eventlet": ("eventlet.patcher", "is_monkey_patched", "eventlet.monkey_patch()"),
}
_MODULES = ("_thread", "thread", "threading", "socket", "select", "time")


def check_threads() -> None:
    """Raise ConfigurationError if what a worker needs of threads and sockets is patched.

    An event loop in a greenlet stalls the others, and database connections would change hands between listeners.
    """
    for library, (module, function, culprit) in _PATCHERS.items():
        if (patcher := sys.modules.get(module)) is None:
            continue
        if patched := [name for name in _MODULES if getattr(patcher, function)(name)]:
            raise ConfigurationError(
                f"lightbus_listen can't run where {library} has patched {', '.join(patched)}: its listeners need real "
                f"threads. Let the web server alone call {culprit}, not manage.py or a module of the project."
            )
