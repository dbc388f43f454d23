"""Settings of all processes of a chaos run: little, for they start often, and short times, so that much goes wrong."""

import environ

env = environ.Env()

CHAOS_SEED = env("CHAOS_SEED")
CHAOS_SABOTAGE = env("CHAOS_SABOTAGE")

CHAOS_CLUSTER = env("LIGHTBUS_URL").startswith("redis+cluster:")
"""Whether Redis is a cluster, and there is a second service, `echo`."""

# The harness itself has the databases of all services.
DATABASES = {"default": env.db("DATABASE_URL")}
DATABASES |= {alias: env.db(name) for alias in ("other", "echo") if env(name := f"{alias.upper()}_DATABASE_URL")}
LIGHTBUS = {
    "SERVICE_NAME": env("CHAOS_SERVICE"),
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
