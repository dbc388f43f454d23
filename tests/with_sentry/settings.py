"""The settings of processes that report to Sentry, or rather to the file SENTRY_FILE: an envelope's items on a line."""

import json
import os
from pathlib import Path

import sentry_sdk
from sentry_sdk.envelope import Envelope
from sentry_sdk.integrations.django import DjangoIntegration
from sentry_sdk.transport import Transport

from lightbus_django.sentry import LightbusIntegration
from tests.settings import *  # noqa: F403

INSTALLED_APPS += ["tests.with_sentry"]  # noqa: F405


class FileTransport(Transport):
    def capture_envelope(self, envelope: Envelope) -> None:
        with Path(os.environ["SENTRY_FILE"]).open("a") as file:
            file.writelines(json.dumps([item.type, item.payload.json]) + "\n" for item in envelope.items)


sentry_sdk.init(
    dsn="https://public@sentry.invalid/1",
    transport=FileTransport,
    send_default_pii=True,
    traces_sample_rate=1.0,
    integrations=[DjangoIntegration(), LightbusIntegration(**json.loads(os.environ.get("SENTRY_OPTIONS", "{}")))],
)
