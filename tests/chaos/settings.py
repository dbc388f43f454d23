"""Settings of all processes of a chaos run: little, for they start often, and short times, so that much goes wrong."""

import environ

env = environ.Env()

CHAOS_SEED = env("CHAOS_SEED")
CHAOS_SABOTAGE = env("CHAOS_SABOTAGE")

DATABASES = {"default": env.db("DATABASE_URL"), "other": env.db("OTHER_DATABASE_URL")}
LIGHTBUS = {
    "SERVICE_NAME": "chaos",
    "URL": env("LIGHTBUS_URL"),
    "ACKNOWLEDGEMENT_TIMEOUT": 2.0,
    "RECLAIM_INTERVAL": 0.5,
    "RETRY_BACKOFF": 1.0,
    "STREAM_RETENTION": 0.0,  # what is finished with goes at once
    # We kill processes and connections all the time; that an event is set aside for it is another test's matter.
    "MAX_ATTEMPTS": 50,
}
INSTALLED_APPS = ["lightbus_django", "tests.chaos"]
SECRET_KEY = "chaos"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
TIME_ZONE = "UTC"
USE_TZ = True
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s.%(msecs)03d %(levelname)s %(message)s", "datefmt": "%H:%M:%S"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": "INFO"},
}
