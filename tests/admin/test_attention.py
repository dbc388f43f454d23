"""What needs attention on the Bus page: each problem has a way out, which is a command or a link."""

import pytest
from django.contrib.admin import site
from django.utils import timezone

from lightbus_django.admin.attention import attention
from lightbus_django.admin.links import event_url, failed_list_url, failures_url, outbox_url

from .statuses import listener, outbox, process, status


def shown(*args, may_view_events=True, **values):
    return list(attention(status(*args, **values), site, may_view_events=may_view_events))


def test_nothing_if_all_is_well():
    assert shown(listener(), processes=[process()], outboxes=[outbox(unpublished=5, seconds_behind=3)]) == []


def test_dead_letters_lead_to_their_list_and_to_their_causes():
    (item,) = shown(listener(dead_letters=3, problems=["3 dead letters"]))
    assert (item.subject, item.problems, item.hints) == ("Listener book", ["3 dead letters"], [])
    dead = failed_list_url(site, "default", consumer_group="shop-book", state="dead")
    assert item.links == [("Dead letters", dead), ("Failures by cause", failures_url(site))]


@pytest.mark.django_db
def test_dead_letters_of_a_database_that_the_admin_does_not_show_have_no_link():
    (item,) = shown(listener(dead_letters=3, database="other", problems=["3 dead letters: … lightbus_failed"]))
    assert item.links == []


@pytest.mark.parametrize(
    ("values", "hint"),
    [
        ({"is_running": False}, "Start manage.py lightbus_listen, or look at why it ended."),
        ({"paused_at": timezone.now()}, "Resume it below."),
        ({"seconds_behind": 61}, "If its figures below are as usual, start more processes."),
    ],
)
def test_a_listener_has_a_hint(values, hint):
    (item,) = shown(listener(problems=["x"], **values))
    assert [text[: len(hint)] for text in item.hints] == [hint]


def test_listeners_with_the_same_problems_are_shown_together():
    alike = [listener(f"l{number}", problems=["no process runs it"], is_running=False) for number in range(30)]
    first, second = shown(*alike, listener("book", problems=["late"], seconds_behind=100))
    assert first.subject == f"Listeners {', '.join(f'l{number}' for number in range(30))}"
    assert second.subject == "Listener book"


@pytest.mark.parametrize(
    ("values", "hint"),
    [
        ({"seconds_silent": 20}, "If it does not come back, start it again with manage.py lightbus_listen."),
        ({}, "It goes on by itself once the cause is gone; its log says more. If it does not, restart it."),
    ],
)
def test_a_process_has_a_hint(values, hint):
    (item,) = shown(processes=[process(problems=["x"], **values)])
    assert (item.subject, item.hints, item.links) == ("Process worker", [hint], [])


def test_two_processes_of_one_name_have_a_hint():
    for item in shown(processes=[process(problems=["x"]), process(problems=["x"])]):
        assert item.hints == ["Give each process a PROCESS_NAME of its own, or stop one."]


@pytest.mark.parametrize("may_view_events", [True, False])
def test_a_process_that_hangs_leads_to_its_event(may_view_events):
    (item,) = shown(processes=[process(problems=["hangs"], events_in_hand=["e-1"])], may_view_events=may_view_events)
    assert item.links == ([("Event e-1", event_url(site, "e-1"))] if may_view_events else [])


def test_an_outbox_leads_to_its_events():
    outboxes = [outbox(refused=1, unpublished=2, seconds_behind=100), outbox("other", refused=1)]
    (item,) = shown(outboxes=outboxes, problems=["1 events can't be published"])
    assert item.links == [
        ("Refused events", outbox_url(site, "default", state="refused")),
        ("Events that are not published", outbox_url(site, "default", state="waiting")),
    ]


def test_servers_that_do_not_answer_have_hints():
    (item,) = shown(problems=["x"], is_redis_known=False, unknown_databases=["other"])
    assert [text.partition(",")[0] for text in item.hints] == [
        "Check that Redis runs",
        "Check that the database answers",
    ]
