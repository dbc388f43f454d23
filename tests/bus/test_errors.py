"""Errors of the server: what they mean, and that they show nothing of what was sent."""

import pytest
import redis

from lightbus_django import LightbusError
from lightbus_django.bus.errors import translate

VALUE = "4929-6789-0123-4567"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"ERR unknown command 'FOO', with args beginning with: '{VALUE}'", "a required command"),
        (f"ERR Error compiling script (new function): user_script:1: '=' expected near '{VALUE}'", ""),
        (
            f"ERR Error running script (call to f_0a1b): @user_script:3: attempt to compare {{{VALUE}",
            "attempt to compare",
        ),
        (f"ERR bad payload: {VALUE}", "bad payload"),
        (f'ERR can\'t take "{VALUE}"', "can't take"),
        (f"ERR syntax error near {{:{VALUE}", "syntax error near"),
        (
            "ERR Error running script (call to f_0a1b): @user_script:3: @user_script: 3: OOM command not allowed",
            "is full",
        ),
        (
            "ERR Error running script (call to f_0a1b): @user_script:3: @user_script: 3: WRONGTYPE Operation",
            "something other than a stream",
        ),
        ("ERR Error running script (call to f_0a1b): @user_script:3: @user_script: 3: -READONLY You", "not available"),
    ],
)
def test_errors_quote_nothing_that_was_sent(text: str, said: str) -> None:
    error = redis.ResponseError(text)
    found: LightbusError = translate(error, "redis://host:6379/0", "shop.*:stream")
    assert said in str(found)
    assert VALUE not in str(found)
