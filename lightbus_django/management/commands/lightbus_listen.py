import argparse
import logging
import signal
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.db import DatabaseError

from lightbus_django.conf import format_name, get_settings, is_random
from lightbus_django.database.errors import one_line
from lightbus_django.exceptions import LightbusError
from lightbus_django.listening.listener import Listener
from lightbus_django.listening.registry import registry
from lightbus_django.management.base import LightbusCommand
from lightbus_django.management.output import positive, seconds
from lightbus_django.running.advice import advice
from lightbus_django.running.child_process import stop_with_parent
from lightbus_django.running.greenlets import check_threads
from lightbus_django.running.stop_signals import stopping_on
from lightbus_django.running.supervisor import run_processes
from lightbus_django.running.worker import Worker

logger = logging.getLogger("lightbus_django")

FLAGS = ("burst", "leave", "traceback", "no_color", "force_color", "skip_checks")


def port(text: str) -> int:
    if not 0 < (number := int(text)) < 65536:
        raise argparse.ArgumentTypeError("must be from 1 to 65535")
    return number


def child_options(options: dict[str, Any]) -> list[str]:
    """Return the command line options of child processes, without their number and names."""
    given = [f"--{name}={options[name.replace('-', '_')]}" for name in ("service-name", "stop-timeout", "verbosity")]
    given += [f"--threads={options['threads']}"] if options["threads"] else []
    given += [f"--listener={name}" for name in options["listener"] or ()]
    given += [f"--{name.replace('_', '-')}" for name in FLAGS if options[name]]
    return given


@contextmanager
def serving_metrics(number: int | None, listeners: Iterable[Listener], **names: str) -> Iterator[None]:
    """Serve metrics during the block if a port is given."""
    if number is None:
        yield
        return
    try:
        from lightbus_django.operating.metrics import serving
    except ModuleNotFoundError as error:
        raise CommandError('--metrics-port needs prometheus-client: pip install "lightbus-django[metrics]"') from error
    with ExitStack() as stack:
        try:
            stack.enter_context(serving(number, listeners, **names))
        except OSError as error:
            raise CommandError(f"Can't serve metrics at port {number}: {error}") from error
        logger.info("metrics at port %d", number)
        yield


class Command(LightbusCommand):
    help = "Run the listeners of this service, and publish events left in the outbox."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--service-name", help="overrides the setting SERVICE_NAME")
        parser.add_argument("--process-name", help="overrides the setting PROCESS_NAME")
        parser.add_argument("--listener", action="append", metavar="NAME", help="run only this listener; repeatable")
        parser.add_argument(
            "--processes", type=positive, default=1, metavar="N", help="run N processes, named NAME-1 to NAME-N"
        )
        parser.add_argument(
            "--threads",
            type=positive,
            metavar="N",
            help="handle events in N threads at most; overrides the setting THREADS",
        )
        parser.add_argument("--burst", action="store_true", help="exit when there is nothing left to do")
        parser.add_argument(
            "--stop-timeout",
            type=seconds,
            default=30.0,
            metavar="SECONDS",
            help="how long to wait for the events in hand on a stop (30)",
        )
        parser.add_argument(
            "--leave",
            action="store_true",
            help="remove this process from its consumer groups on a stop, because its name won't be used again; "
            "implied if the name is random",
        )
        parser.add_argument(
            "--metrics-port",
            type=port,
            metavar="PORT",
            help="serve metrics for Prometheus at this port; with --processes, one port for each from this one on",
        )
        parser.add_argument("--stop-with-parent", action="store_true", help=argparse.SUPPRESS)

    def handle(self, **options: Any) -> None:
        if not logger.hasHandlers():  # the project's LOGGING doesn't configure it
            logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
            logger.setLevel(logging.INFO if options["verbosity"] else logging.WARNING)
        try:
            check_threads()
            settings = get_settings()
            service_name = format_name(options["service_name"] or settings.service_name)
            template = options["process_name"] or settings.process_name
            process_name = format_name(template)
            leave = options["leave"] or is_random(template)
            if options["processes"] > 1:
                given = child_options({**options, "service_name": service_name, "leave": leave})
                code = run_processes(
                    options["processes"],
                    process_name,
                    given,
                    stop_timeout=options["stop_timeout"] + 5,
                    metrics_port=options["metrics_port"],
                )
                if code:
                    raise CommandError("A process failed; see its log.", returncode=code)
                return
            listeners = registry.select(options["listener"])
            registry.check_groups(service_name)
            worker = Worker(
                listeners,
                service_name=service_name,
                process_name=process_name,
                settings=settings,
                threads=options["threads"],
                leave=leave,
            )
            worker.check_databases()
            worker.check_bus()
            names = {"service_name": service_name, "process_name": process_name}
            metrics = serving_metrics(options["metrics_port"], listeners, **names)
            with stopping_on(signal.SIGTERM, signal.SIGINT, stop=worker.stop), metrics:
                for line in worker.describe():
                    logger.info(line)
                if options["stop_with_parent"]:
                    stop_with_parent(worker.stop)
                if options["burst"]:
                    worker.run_burst()
                elif not worker.run(stop_timeout=options["stop_timeout"]):
                    raise CommandError("The worker failed or did not stop in time; see its log.")
        except (LightbusError, DatabaseError) as error:
            raise CommandError(one_line(error) + advice(error)) from error
