import os
import re
import socket

import pytest
from django.core.management import call_command
from django.test import override_settings

from lightbus_django.bus.client import RedisClient
from lightbus_django.conf import find_problems, format_name, get_settings, is_random
from lightbus_django.exceptions import ConfigurationError


def test_settings_follow_override_settings():
    with override_settings(LIGHTBUS={"SERVICE_NAME": "one", "BATCH_SIZE": 7}):
        assert (get_settings().service_name, get_settings().batch_size) == ("one", 7)
    assert get_settings().service_name == "price-monitor"


def test_only_the_service_name_is_required():
    with override_settings(LIGHTBUS={"SERVICE_NAME": "one"}):
        settings = get_settings()
    assert settings.url == "redis://localhost:6379/0"
    assert settings.process_name == "{random4}"
    assert settings.stream_use == "per_api"
    assert settings.acknowledgement_timeout == 60
    assert settings.consumer_ttl == 30 * 24 * 3600


@pytest.mark.parametrize(
    ("raw", "check_id", "says"),
    [
        (None, "E001", "is missing"),
        ([], "E001", "must be a dict"),
        ({}, "E002", "SERVICE_NAME"),
        ({"SERVICE_NAME": "a", "PROCES_NAME": "b"}, "E003", "Did you mean 'PROCESS_NAME'?"),
        ({"SERVICE_NAME": "a", "service_name": "b"}, "E003", "Did you mean 'SERVICE_NAME'?"),
        ({"SERVICE_NAME": "a", "QQQQ": "b"}, "E003", "Known keys: SERVICE_NAME"),
        ({"SERVICE_NAME": ""}, "E004", "length >= 1"),
        ({"SERVICE_NAME": 5}, "E004", "Expected `str`"),
        ({"SERVICE_NAME": "a", "BATCH_SIZE": 0}, "E004", ">= 1"),
        ({"SERVICE_NAME": "a", "BATCH_SIZE": "10"}, "E004", "Expected `int`"),
        ({"SERVICE_NAME": "a", "ACKNOWLEDGEMENT_TIMEOUT": -1}, "E004", "> 0"),
        ({"SERVICE_NAME": "a", "STREAM_USE": "per_moon"}, "E004", "STREAM_USE"),
        ({"SERVICE_NAME": "a", "URL": "http://x"}, "E004", "URL"),
        ({"SERVICE_NAME": "a", "PROCESS_NAME": "{host}"}, "E004", "{hostname}"),
        ({"SERVICE_NAME": "a", "PROCESS_NAME": "{"}, "E004", "{hostname}"),
    ],
)
def test_what_is_wrong_is_named_with_the_way_out(raw, check_id, says):
    (problem,) = find_problems(raw)
    assert problem.id == check_id
    assert says in problem.message + problem.hint
    with override_settings(LIGHTBUS=raw), pytest.raises(ConfigurationError, match="LIGHTBUS"):
        get_settings()


def test_a_refused_url_is_not_repeated_for_it_may_hold_a_password():
    (problem,) = find_problems({"SERVICE_NAME": "a", "URL": "http://:secret@host"})
    assert "secret" not in problem.message + problem.hint


def test_a_password_that_breaks_the_url_is_not_repeated():
    url = "redis://:sec/ret@host"
    (problem,) = find_problems({"SERVICE_NAME": "a", "URL": url})
    assert "percent-encoded" in problem.message
    assert "sec" not in problem.message
    with pytest.raises(ConfigurationError, match="percent-encoded") as caught:
        RedisClient(url, timeout=1)
    assert caught.value.__cause__ is None
    with override_settings(LIGHTBUS={"SERVICE_NAME": "a", "URL": "redis://:secret@host"}):
        assert "secret" not in repr(get_settings())


def test_all_problems_are_found_at_once():
    assert len(find_problems({"SERVICE_NAME": 5, "BATCH_SIZE": 0, "QQQ": 1})) == 3


def test_placeholders_are_those_of_lightbus():
    assert format_name("{hostname}-{pid}") == f"{socket.gethostname().lower()}-{os.getpid()}"
    for template, pattern in {
        "{random4}": r"[a-z0-9]{4}",
        "{random8}": r"[a-z0-9]{8}",
        "{random16}": r"[a-z0-9]{16}",
        "{friendly}": r"[a-z]+-[a-z]+-\d+",
        "plain": "plain",
    }.items():
        assert re.fullmatch(pattern, format_name(template))
    assert format_name("{random16}") != format_name("{random16}")


def test_which_names_are_random():
    assert is_random("{random4}")
    assert is_random("web-{pid}")
    assert not is_random("{hostname}")
    assert not is_random("random4")


def test_makemigrations_has_nothing_to_do(db):
    call_command("makemigrations", "--check", "--dry-run", verbosity=0)


def test_an_option_of_the_url_that_redis_py_does_not_know_is_named():
    with pytest.raises(ConfigurationError, match="an unsupported option: 'nonsense'"):
        RedisClient("redis://localhost/0?nonsense=1", timeout=1)
