"""A listener to look at, and a real browser. Screenshots go to the directory that SCREENSHOTS names, if any."""

import os
import shutil
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from lightbus_django import fire, listens_to
from lightbus_django.bus import figures, heartbeats
from lightbus_django.bus.heartbeats import ListenerSign, ProcessSign
from tests.conftest import drain
from tests.waiting import eventually

GROUP = "price-monitor-book"


@pytest.fixture
def browser(tmp_path):
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    for argument in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
        "--window-size=1400,900",
        f"--user-data-dir={tmp_path}/profile",
    ):
        options.add_argument(argument)
    options.binary_location = shutil.which("chromium")
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    browser = webdriver.Chrome(options=options, service=service)
    yield browser
    browser.quit()


@pytest.fixture
def logged_in(browser, live_server, admin_client):
    """The browser, as the admin sees the pages."""
    browser.get(f"{live_server.url}/admin/login/")
    browser.add_cookie({"name": "sessionid", "value": admin_client.cookies["sessionid"].value})
    return browser


@pytest.fixture
def shoot(browser):
    def shoot(name):
        if directory := os.environ.get("SCREENSHOTS"):
            browser.save_screenshot(str(Path(directory) / f"{name}.png"))

    return shoot


@pytest.fixture
def screen(browser):
    """Set the width of the browser, and a dark or light scheme."""

    def screen(width, scheme="light", height=1500):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    return screen


@pytest.fixture
def look(logged_in, live_server, screen, shoot):
    """Look at a page on a desk, on a phone, and in the dark; nothing may be wider than the screen."""

    def look(path, name):
        for width, scheme in ((390, "light"), (1440, "dark"), (1440, "light")):
            screen(width, scheme)
            logged_in.get(live_server.url + path)
            shoot(f"{name}-{scheme}-{width}")
            assert logged_in.execute_script("return document.documentElement.scrollWidth") <= width
            assert logged_in.execute_script(
                "return [...document.querySelectorAll('.lightbus section')].every(e => e.scrollWidth <= e.clientWidth)"
            )

    return look


@pytest.fixture
def wait_for(browser):
    """Wait until the page says a text, because a click may not have brought the page yet."""

    def wait_for(text):
        from selenium.common.exceptions import WebDriverException

        def says():
            try:
                return text in browser.find_element("tag name", "body").text
            except WebDriverException:
                return False

        eventually(says)

    return wait_for


@pytest.fixture
def book(listeners, r, consume, redis_client):
    """A listener that has handled three events, in a process with a heartbeat."""

    @listens_to("shop.order_placed", start="beginning")
    def book(event, number):
        pass

    consumer = consume()
    for number in range(3):
        fire("shop.order_placed", number=number)
    drain(consumer)
    sign = ProcessSign(
        service_name="price-monitor",
        process_name="worker",
        host="host1",
        pid=4711,
        started=3600.0,
        listeners=[ListenerSign(group=GROUP, listener="book", stepped=0.0)],
    )
    heartbeats.beat(redis_client, "a", sign)
    counts = {GROUP: Counter({figures.HANDLED: 50, str(figures.bucket(20)): 50})}
    figures.add(redis_client, counts, datetime.now(UTC) - timedelta(minutes=2))
    return consumer
