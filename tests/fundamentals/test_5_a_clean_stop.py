"""SIGTERM and Ctrl-C let the event in hand be finished and acknowledged. The rest of the batch is handed
back, so that another process has it without waiting for a timeout.
"""

import os
import signal
import subprocess

import pytest

from lightbus_django import fire
from tests.conftest import eventually

from .conftest import KEY


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_the_event_in_hand_is_finished_and_the_rest_handed_back(manage, effects, pending, signum, tmp_path):
    started = tmp_path / "started"
    for number in range(5):
        fire("shop.parcel_delivered", number=number, sleep=1, once=str(started))
    first = manage("lightbus_listen", "--process-name", "web-1")
    eventually(started.exists)
    first.send_signal(signum)
    assert first.wait(30) == 0
    handled = effects("fragile")
    assert 1 <= len(handled) < 5
    assert pending("price-monitor-fragile") == 5 - len(handled)

    # The acknowledgement timeout is a minute, but nothing waits for it.
    assert manage("lightbus_listen", "--process-name", "web-2", "--burst").wait(30) == 0
    assert effects("fragile") == [0, 1, 2, 3, 4]
    assert pending("price-monitor-fragile") == 0


@pytest.mark.parametrize("options", [["--process-name", "{random4}"], ["--processes", "2", "--leave"]])
def test_a_name_that_does_not_come_back_is_not_left_behind(manage, effects, r, options):
    """The group keeps one consumer, for Lightbus destroys groups that have none."""
    fire("shop.parcel_delivered", number=1)
    process = manage("lightbus_listen", *options)
    eventually(lambda: effects("fragile") == [1])
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0, output
    for group in ("price-monitor-book", "price-monitor-fragile"):
        assert [row["name"] for row in r.xinfo_consumers(KEY, group)] == ["nobody"]


def signal_group(process, signum):
    """As a terminal does with Ctrl-C."""
    os.killpg(process.pid, signum)


def signal_all(process, signum):
    """As systemd does: the process and its children, wherever they are."""
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
    for pid in (process.pid, *map(int, found.stdout.split())):
        os.kill(pid, signum)


@pytest.mark.parametrize(("send", "signum"), [(signal_group, signal.SIGINT), (signal_all, signal.SIGTERM)])
def test_several_processes_stop_cleanly(manage, effects, send, signum, tmp_path):
    started = tmp_path / "started"
    fire("shop.parcel_delivered", number=1, sleep=1, once=str(started))
    process = manage("lightbus_listen", "--processes", "2")
    eventually(started.exists)
    send(process, signum)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0, output
    assert effects("fragile") == [1]


def test_a_second_signal_ends_it_now(manage, tmp_path):
    started = tmp_path / "started"
    fire("shop.parcel_delivered", number=1, sleep=60, once=str(started))
    process = manage("lightbus_listen")
    eventually(started.exists)
    process.send_signal(signal.SIGTERM)
    eventually(lambda: process.send_signal(signal.SIGTERM) or process.poll() is not None)
    assert process.returncode == 128 + signal.SIGTERM
