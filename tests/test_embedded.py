import os
import signal
import subprocess
import sys
from urllib.parse import urlsplit

import pytest
import redis

from lightbus_django.embedded import embedded_server
from lightbus_django.exceptions import LightbusError
from tests.conftest import ROOT, eventually


def answers(url):
    with redis.Redis.from_url(url, socket_timeout=1) as client:
        try:
            return client.ping()
        except redis.RedisError:
            return False


def start(*arguments):
    process = subprocess.Popen(
        [sys.executable, "-m", "lightbus_django.embedded", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    return process, process.stdout.readline().strip()


def test_ends_with_the_block_and_leaves_nothing():
    with embedded_server() as url:
        with redis.Redis.from_url(url) as client:
            directory = client.config_get("dir")["dir"]
        assert os.path.isdir(directory)
    assert not answers(url)
    assert not os.path.exists(directory)


def test_two_at_a_time_are_two():
    with embedded_server() as one, embedded_server() as two:
        assert one != two
        assert answers(one)
        assert answers(two)


def test_many_starts_in_parallel():
    started = [start("--port", "0") for _ in range(6)]
    try:
        assert len({url for _, url in started}) == 6
        assert all(answers(url) for _, url in started)
    finally:
        for process, _ in started:
            process.send_signal(signal.SIGTERM)
            process.communicate()


def test_no_orphan_after_kill_9_of_its_owner():
    process, url = start("--port", "0")
    with redis.Redis.from_url(url) as client:
        directory = client.config_get("dir")["dir"]
    process.kill()
    process.communicate()
    eventually(lambda: not answers(url))
    eventually(lambda: not os.path.exists(directory))


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_process_group_ends_it_cleanly(signum):
    process, url = start("--port", "0")
    os.killpg(process.pid, signum)
    process.communicate(timeout=20)
    assert process.returncode == 0
    assert not answers(url)


def test_a_data_directory_keeps_the_events(tmp_path):
    deep = tmp_path / ("d" * 100)  # longer than the path of a socket may be
    with embedded_server(data_dir=deep) as url, redis.Redis.from_url(url) as client:
        client.xadd("a.*:stream", {"x": 1})
    with embedded_server(data_dir=deep) as url, redis.Redis.from_url(url) as client:
        assert client.xlen("a.*:stream") == 1


def test_a_data_directory_has_one_server(tmp_path):
    with embedded_server(data_dir=tmp_path), pytest.raises(LightbusError, match="can't be started"):
        embedded_server(data_dir=tmp_path).__enter__()


def test_a_port_that_is_taken_is_an_error():
    with embedded_server() as url, pytest.raises(LightbusError, match="can't be started"):
        embedded_server(port=urlsplit(url).port).__enter__()
