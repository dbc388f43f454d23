"""The Bus page in a real browser: on a desk, on a phone and in the dark, and how it refreshes itself."""

import math
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from django.utils import timezone

from lightbus_django import fire, listens_to, on_commit
from lightbus_django.bus import figures
from lightbus_django.models import ConsumerGroup
from tests.waiting import eventually

from .conftest import GROUP
from .test_bus import BUS, dead_letters
from .test_catalogue import URL as CATALOGUE

pytest.importorskip("selenium.webdriver", reason="selenium is not installed")

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


def wait_seconds(browser):
    """Let the page refresh itself ten times as often."""
    browser.execute_cdp_cmd(
        "Page.addScriptToEvaluateOnNewDocument",
        {"source": "const slow = window.setInterval; window.setInterval = (f, ms) => slow(f, ms / 10);"},
    )


def test_the_catalogue_looks_fine_everywhere(look, book):
    on_commit("shop.parcel_delivered_to_a_neighbour", number=1, neighbour={"name": "x"}, note=None)
    look(CATALOGUE, "catalogue")


def test_looks_fine_everywhere(logged_in, look, book):
    look(BUS, "bus-well")

    @listens_to("shop.order_placed", listener_name="send_a_confirmation_to_the_customer")
    def mail(event):
        pass

    @listens_to(["shop.parcel_delivered", "shop.parcel_lost"])
    def count_stock(event):
        pass

    dead_letters(1234)
    ConsumerGroup.objects.update(paused_at=timezone.now(), paused_by="eva@example.com")
    look(BUS, "bus")
    number = logged_in.find_element("css selector", "a.lightbus-act")
    assert number.value_of_css_property("color") == "rgba(186, 33, 33, 1)"  # not that of other links


def add_figures(redis_client, group, *, size):
    """Add an hour of figures, for the listener of a group and for the process."""
    now = datetime.now(UTC)
    for back in range(1, 60):
        if size == 1 or back % 7:
            handled = int(size * (2 + math.sin(back / 5))) + back % 3
            counts = Counter(
                {figures.HANDLED: handled, figures.bucket(20 + 300 * (back % 5)): handled, figures.FAILED: 1}
            )
            process = ("price-monitor", "worker")
            figures.add(redis_client, {group: counts}, now - timedelta(minutes=back), process=process)


@pytest.mark.parametrize("count", [1, 5, 30])
def test_plots_look_fine_everywhere(logged_in, live_server, look, book, redis_client, count):
    add_figures(redis_client, GROUP, size=20)
    for number in range(2, count + 1):
        name = f"listener_{number}_with_a_name" if number % 2 else f"mail_{number}"
        listens_to("shop.order_placed", listener_name=name)(lambda event: None)
        add_figures(redis_client, f"price-monitor-{name}".replace("_", "-"), size=100 // number)
    look(BUS, f"bus-plots-{count}")
    look(f"{BUS}?listener={GROUP}", f"bus-plots-{count}-of-one")
    lines = "svg[viewBox] path:not(.lightbus-dots)"
    drawn = f"return [...document.querySelectorAll('figure')].map(e => e.querySelectorAll('{lines}').length)"
    assert logged_in.execute_script(drawn) == [2, 2]
    logged_in.get(live_server.url + BUS)
    assert logged_in.execute_script(drawn) == [min(count, 6), 2]


@pytest.mark.parametrize("path", [BUS, CATALOGUE])
def test_the_way_back_stands_out_as_on_other_pages(logged_in, live_server, book, path):
    def colours():
        found = logged_in.find_element("css selector", ".breadcrumbs")
        link = found.find_element("css selector", "a")
        shown = [part.value_of_css_property("color") for part in (found, link)]
        return found.value_of_css_property("background-color"), *shown

    logged_in.get(f"{live_server.url}/admin/lightbus_django/processedevent/")
    other = colours()
    logged_in.get(live_server.url + path)
    assert colours() == other


def press(browser, element_id):
    """Press Enter on an element, which a refresh may replace at any time."""
    from selenium.common.exceptions import WebDriverException

    def pressed():
        try:
            browser.find_element("id", element_id).send_keys("\n")
        except WebDriverException:
            return False
        return True

    eventually(pressed)


def test_the_plots_of_a_listener_are_chosen_with_the_keyboard_and_its_table_stays_open(
    logged_in, live_server, wait_for, book
):
    wait_seconds(logged_in)
    logged_in.get(live_server.url + BUS)
    press(logged_in, f"plots-of-{GROUP}")
    wait_for("Last hour of book")
    press(logged_in, "lightbus-table-summary")
    fire("shop.order_placed", number=1)
    waiting = "return document.querySelector('#lightbus-bus td[data-label=Waiting]').innerText"
    eventually(lambda: logged_in.execute_script(waiting) == "1")
    focused = "return document.getElementById('lightbus-table').open && document.activeElement.id"
    eventually(lambda: logged_in.execute_script(focused) == "lightbus-table-summary")
    wait_for("Last hour of book")
    press(logged_in, "plots-of-all")
    text = "return document.readyState == 'complete' ? document.body.innerText : 'Last hour of book'"
    eventually(lambda: "Last hour of book" not in logged_in.execute_script(text))
    wait_for("Handled per minute")


def test_refreshes_itself_and_keeps_the_focus(logged_in, live_server, wait_for, book):
    wait_seconds(logged_in)
    logged_in.get(live_server.url + BUS)
    wait_for("All is well")
    button = logged_in.find_element("css selector", "button[value=pause]")
    logged_in.execute_script("arguments[0].focus()", button)
    for number in range(7):
        fire("shop.order_placed", number=number)
    waiting = "return document.querySelector('#lightbus-bus td[data-label=Waiting]').innerText"
    eventually(lambda: logged_in.execute_script(waiting) == "7")
    assert logged_in.switch_to.active_element.get_attribute("value") == "pause"
    dead_letters(1)
    wait_for("Needs attention")
    announcement = logged_in.find_element("id", "lightbus-announcement")
    assert "dead letters" in announcement.get_attribute("textContent")


def test_refreshing_can_be_turned_off_and_says_when_it_fails(logged_in, live_server, wait_for, book):
    wait_seconds(logged_in)
    logged_in.get(live_server.url + BUS)
    logged_in.delete_all_cookies()
    wait_for("The last refresh failed")
    logged_in.find_element("css selector", ".lightbus-refresh input").click()
    dead_letters(1)
    assert "All is well" in logged_in.find_element("tag name", "body").text


def test_a_listener_is_paused_and_resumed_with_the_keyboard(logged_in, live_server, wait_for, book):
    logged_in.get(live_server.url + BUS)
    logged_in.find_element("css selector", "button[value=pause]").send_keys("\n")
    wait_for("rests within seconds")
    assert ConsumerGroup.objects.get().paused_by == "admin"
    wait_for("Paused by admin")
    logged_in.find_element("css selector", "button[value=resume]").send_keys("\n")
    wait_for("goes on within seconds")
    assert ConsumerGroup.objects.get().paused_at is None
