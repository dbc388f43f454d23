"""docs/monitoring.md is true: its names are those of the code, and its examples run."""

import json
import re
import sys
import urllib.request
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest

from lightbus_django import fire, listens_to, signals
from lightbus_django.listening.consumer import Consumer
from lightbus_django.listening.registry import registry
from tests.conftest import ROOT, drain

MONITORING = (ROOT / "docs" / "monitoring.md").read_text()
EXAMPLES = dict(re.findall(r"```python\n# (\S+)\n(.*?)```", MONITORING, re.DOTALL))  # fmt: skip


@pytest.fixture
def shop() -> Iterator[ModuleType]:
    """The app of the examples, with an empty `listeners.py`."""
    names = "shop", "shop.listeners"
    before = {name: sys.modules[name] for name in names if name in sys.modules}  # the guide has an app of this name
    package, module = map(ModuleType, names)
    package.__path__ = []
    sys.modules.update(zip(names, (package, module), strict=True))
    yield module
    for name in names:
        del sys.modules[name]
    sys.modules.update(before)


def test_links_lead_somewhere() -> None:
    own = {heading.lower().replace(" ", "-") for heading in re.findall(r"^#+ (.+)$", MONITORING, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([^)]*)\)", MONITORING)) <= own
    for page, anchor in re.findall(r"\]\((\w+\.md)#([^)]*)\)", MONITORING):
        text = (ROOT / "docs" / page).read_text()
        assert anchor in {heading.lower().replace(" ", "-") for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}


def test_these_are_all_signals() -> None:
    assert set(re.findall(r"^\| `([a-z_]+)` \| [^|]+ \| `", MONITORING, re.MULTILINE)) == set(signals.__all__)


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
def test_these_are_all_metrics_and_the_dashboard_has_no_others(
    r: object, listeners: object, consume: Callable[..., Consumer]
) -> None:
    metrics = pytest.importorskip("lightbus_django.operating.metrics")

    @listens_to("shop.order_placed")
    def record(event: object) -> None: ...

    consume()
    names = {"service_name": "price-monitor", "process_name": "worker"}
    with (
        metrics.serving(0, registry, **names) as port,
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer,
    ):
        text = answer.read().decode()
    served = dict(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE))
    served = {name: kind for name, kind in served.items() if not name.endswith("_created")}
    assert dict(re.findall(r"^\| `(lightbus_\w+)\{\w+\}` \| (\w+) \|", MONITORING, re.MULTILINE)) == served

    dashboard = json.loads((ROOT / "docs" / "grafana.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    alerts = re.findall(r"expr: '(.+?)'", MONITORING)
    assert len(alerts) == 4
    for query in queries + alerts:
        assert set(re.findall(r"lightbus_\w+", query)) <= {*served, *(f"{name}_bucket" for name in served)}


@pytest.mark.django_db(transaction=True)
def test_the_receiver(
    shop: ModuleType,
    r: object,
    listeners: object,
    lightbus: Callable[..., None],
    consume: Callable[..., Consumer],
    capsys: pytest.CaptureFixture[str],
) -> None:
    @listens_to("shop.order_placed", start="beginning")
    def send_mail(event: object, number: int) -> None:
        raise TimeoutError("no answer")

    lightbus(MAX_ATTEMPTS=1)
    shop.__dict__["send_mail"] = send_mail
    namespace = {"__name__": "shop.receivers", "__package__": "shop"}
    exec(EXAMPLES["shop/receivers.py"], namespace)
    try:
        event = fire("shop.order_placed", number=1)
        drain(consume())
    finally:
        signals.event_dead_lettered.disconnect(namespace["mail_was_not_sent"], sender=send_mail)
    assert f"shop.order_placed {event.id}: TimeoutError('no answer')" in capsys.readouterr().out
