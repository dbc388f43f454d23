"""How tracebacks are split into frames of libraries and the rest."""

import json
import traceback

from lightbus_django.admin.frames import split


def joined(parts):
    return "\n".join(part.text for part in parts)


def failure():
    raise ValueError("no")


def formatted(call):
    try:
        call()
    except Exception as error:
        return "".join(traceback.format_exception(error))


def test_frames_of_a_library_are_a_part_of_their_own():
    text = formatted(lambda: json.loads("{"))
    parts = split(text)
    assert [part.is_library for part in parts] == [False, True, False]
    assert parts[1].frames == 3
    assert "json.loads(" in parts[0].text
    assert parts[2].text.startswith("json.decoder.JSONDecodeError")
    assert joined(parts) == text.rstrip("\n")


def test_nothing_is_lost_of_causes_groups_notes_and_recursions():
    def cause():
        try:
            json.loads("{")
        except ValueError as error:
            raise KeyError("more\n  File than\n    that") from error

    def recursive():
        recursive()

    def group():
        errors = []
        for call in (cause, failure):
            try:
                call()
            except Exception as error:
                error.add_note("a note")
                errors.append(error)
        raise ExceptionGroup("two", errors)

    for call in (cause, recursive, group):
        text = formatted(call)
        assert joined(split(text)) == text.rstrip("\n")
    assert any(part.is_library for part in split(formatted(group)))


def test_what_is_no_traceback():
    assert joined(split("no traceback\n\n  at all")) == "no traceback\n\n  at all"
    assert [part.is_library for part in split("no traceback")] == [False]
    assert joined(split("")) == ""
