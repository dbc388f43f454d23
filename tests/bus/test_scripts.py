"""The Lua scripts: every file is used, and is sent without its comments."""

from importlib.resources import files

import pytest

from lightbus_django.bus import scripts

STREAM = "shop.*:stream"
SHARED = {"xinfo", "stream_ids"}

COMMANDS = {
    "append_confirmed": scripts.append_confirmed(STREAM, "one", "two", row_id=b"16 bytes", fields={b"id": b"1"}),
    "join": scripts.join(STREAM, "group", "one", start_id="$"),
    "leave": scripts.leave(STREAM, "group", "one", placeholder="nobody"),
    "claim_pending": scripts.claim_pending(STREAM, "group", "one", idle=1.5, count=10),
    "update_pending": scripts.update_pending(STREAM, "group", "one", ["1-0"]),
    "progress": scripts.progress(STREAM, "group"),
    "last_id_and_time": scripts.last_id_and_time(STREAM),
    "trim": scripts.trim(STREAM, keep_from="1-0", keep_length=0, limit=10, ahead_from="9-0", required_groups=[]),
    "delete_idle_consumers": scripts.delete_idle_consumers(STREAM, "group", idle=60),
    "heartbeat": scripts.heartbeat(STREAM, "one", start="a", content=b"{}", expiry=30, member="shop/web"),
    "count_unread": scripts.count_unread(STREAM, "1-0", limit=10, max_bytes=9, event_names=["a.b"]),
    "scan_events": scripts.scan_events(STREAM, "1-0", limit=10, max_bytes=9),
    "move_group": scripts.move_group(STREAM, "group", "other", "nobody", idle=60),
    "retire": scripts.retire(STREAM, "group", idle=60),
}


def test_every_file_has_a_function():
    names = {path.name.removesuffix(".lua") for path in (files(scripts.__package__) / "lua").iterdir()}
    assert names == COMMANDS.keys() | SHARED


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_names_its_keys_and_has_no_comments(name):
    eval_, source, number, *rest = COMMANDS[name]
    assert eval_ == b"EVAL"
    assert rest[:number] == [STREAM, "one", "two"][:number]
    assert b"--" not in source
    assert b"redis.call" in source


@pytest.mark.parametrize("name", COMMANDS)
def test_redis_compiles_it(name, r):
    assert r.script_load(COMMANDS[name][1])


def test_idle_times_are_sent_in_milliseconds_and_what_is_not_given_is_left_out():
    assert COMMANDS["claim_pending"][3:] == (STREAM, "group", "one", 1500, 10)
    assert COMMANDS["update_pending"][3:] == (STREAM, "group", "one", "one", 0, "", "1-0")
    owned = scripts.claim_pending(STREAM, "group", "one", idle=0, count=1, owner="two")
    assert owned[3:] == (STREAM, "group", "one", 0, 1, "two")


def test_a_source_is_read_once():
    assert scripts.join(STREAM, "a", "b", start_id="0")[1] is COMMANDS["join"][1]
