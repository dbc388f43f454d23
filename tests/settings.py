"""Settings of the tests. DATABASE_URL and LIGHTBUS_URL point them at other servers; that Redis database is flushed."""

import os
import tempfile
from pathlib import Path

import environ

env = environ.Env()
scratch = Path(tempfile.gettempdir())

DATABASES = {
    "default": env.db("DATABASE_URL", default=f"sqlite:///{scratch}/lightbus-tests.sqlite3"),
    # On the same server, unless said otherwise.
    "other": env.db("OTHER_DATABASE_URL", default=env("DATABASE_URL", default=f"sqlite:///{scratch}/other.sqlite3")),
}
for alias, database in DATABASES.items():
    database["TEST"] = {"NAME": f"test_{database['NAME']}_{alias}"}  # so that two runs on one server can have their own
    if database["ENGINE"] == "django.db.backends.sqlite3":
        # A file, for other processes share it; one for each run of the tests.
        database["TEST"] = {"NAME": f"{scratch}/test-lightbus-{alias}-{os.getpid()}.sqlite3"}
        database["OPTIONS"] = {
            "timeout": 20,
            "transaction_mode": "IMMEDIATE",
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF;",
        }

    elif env.bool("DATABASE_POOL", default=False):
        database["OPTIONS"] = {"pool": True}

LIGHTBUS = {
    "SERVICE_NAME": "price-monitor",
    "PROCESS_NAME": "worker",
    "URL": env("LIGHTBUS_URL", default="redis://localhost:1/0"),
    "STREAM_USE": env("LIGHTBUS_STREAM_USE", default="per_api"),
    "ACKNOWLEDGEMENT_TIMEOUT": env.float("LIGHTBUS_ACKNOWLEDGEMENT_TIMEOUT", default=60.0),
    "RECLAIM_INTERVAL": env.float("LIGHTBUS_RECLAIM_INTERVAL", default=5.0),
    "RETRY_BACKOFF": env.float("LIGHTBUS_RETRY_BACKOFF", default=10.0),
    "MAX_ATTEMPTS": env.int("LIGHTBUS_MAX_ATTEMPTS", default=5),
}

DEBUG = True
SECRET_KEY = "tests"
ALLOWED_HOSTS = ["*"]
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "lightbus_django",
    "tests.app",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
ROOT_URLCONF = "example_project.urls"
STATIC_URL = "static/"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
TIME_ZONE = "UTC"
USE_TZ = True
