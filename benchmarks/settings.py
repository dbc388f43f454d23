"""Django's settings for the measured processes: what the guide recommends, and the defaults besides."""

import environ

env = environ.Env()

DATABASES = {"default": env.db("DATABASE_URL")}
if DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":
    DATABASES["default"]["OPTIONS"] = {
        "timeout": 30,
        "transaction_mode": "IMMEDIATE",
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
    }
LIGHTBUS = {
    "SERVICE_NAME": "benchmarks",
    "PROCESS_NAME": "measured",
    "URL": env("LIGHTBUS_URL"),
    # A day, as it is by default; a run that is long enough to trim says otherwise.
    "STREAM_RETENTION": env.float("LIGHTBUS_STREAM_RETENTION", default=86_400.0),
}
if threads := env.int("LIGHTBUS_THREADS", default=0):
    LIGHTBUS["THREADS"] = threads
INSTALLED_APPS = ["lightbus_django", "benchmarks"]
SECRET_KEY = "benchmarks"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
TIME_ZONE = "UTC"
USE_TZ = True
