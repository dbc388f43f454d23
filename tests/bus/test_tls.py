"""`rediss://` and `rediss+sentinel://`: Redis over TLS, with a certificate authority of one's own."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lightbus_django import BusUnavailable, fire, listens_to
from lightbus_django.bus.client import RedisClient
from lightbus_django.conf import find_problems, get_settings
from lightbus_django.listening.registry import registry
from lightbus_django.running.worker import Worker
from tests.app.models import Effect
from tests.clusters import ask
from tests.conftest import eventually
from tests.servers import Sentinel, Server, free_port, redis_server

PASSWORD = "pa55-of-the-tests"


def openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


def make_authority(directory: Path) -> Path:
    """Make a certificate authority; return its certificate."""
    directory.mkdir()
    openssl(
        "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
        "-subj", "/CN=an authority of the tests", "-addext", "keyUsage=critical,keyCertSign",
        "-keyout", directory / "ca.key", "-out", directory / "ca.pem",
    )  # fmt: skip
    return directory / "ca.pem"


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The certificates of two authorities. The first signed `server.pem`, beside it, for localhost."""
    if not shutil.which("openssl"):
        pytest.skip("there is no openssl")
    directory = tmp_path_factory.mktemp("tls")
    ours, others = make_authority(directory / "ours"), make_authority(directory / "others")
    (ours.parent / "names").write_text("subjectAltName=DNS:localhost\nauthorityKeyIdentifier=keyid\n")
    openssl(
        "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=localhost",
        "-keyout", ours.parent / "server.key", "-out", ours.parent / "server.csr",
    )  # fmt: skip
    openssl(
        "x509", "-req", "-in", ours.parent / "server.csr", "-CA", ours, "-CAkey", ours.parent / "ca.key",
        "-CAcreateserial", "-days", "2", "-extfile", ours.parent / "names", "-out", ours.parent / "server.pem",
    )  # fmt: skip
    return ours, others


@pytest.fixture(scope="module")
def tls(authorities: tuple[Path, Path]) -> list[str]:
    """Lines of configuration with which a server has TLS, but for the port."""
    if not has_tls(redis_server()):
        pytest.skip("redis-server has no TLS")
    directory = authorities[0].parent
    return [
        f"tls-cert-file {directory / 'server.pem'}",
        f"tls-key-file {directory / 'server.key'}",
        f"tls-ca-cert-file {authorities[0]}",
        "tls-auth-clients no",
    ]


@pytest.fixture(scope="module")
def address(tls: list[str]) -> Iterator[str]:
    """The URL of a server that has TLS, without an option that names the authority."""
    port = free_port()
    with Server(f"tls-port {port}", *tls, binary=redis_server(), password=PASSWORD):
        yield f"rediss://:{PASSWORD}@localhost:{port}/0"


@pytest.fixture
def guarded_address(address: str, tls: list[str]) -> Iterator[str]:
    """The URL of a Sentinel that guards this server; between them all is TLS."""
    port, of_server = free_port(), address.removesuffix("/0").rpartition(":")[2]
    by_names = "sentinel resolve-hostnames yes", "sentinel announce-hostnames yes"
    monitor = f"sentinel monitor mymaster localhost {of_server} 1", f"sentinel auth-pass mymaster {PASSWORD}"
    with Sentinel(f"tls-port {port}", "tls-replication yes", *tls, *by_names, *monitor):
        yield f"rediss+sentinel://:{PASSWORD}@localhost:{port}/mymaster/0"


def has_tls(binary: str) -> bool:
    """Whether it gets as far as missing a certificate."""
    command = [binary, "--port", "0", "--tls-port", "1"]
    return "Failed to configure TLS" in subprocess.run(command, check=False, capture_output=True, text=True).stdout


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
@pytest.mark.parametrize("of", ["address", "guarded_address"])
def test_the_url_names_the_authority(
    of: str,
    request: pytest.FixtureRequest,
    authorities: tuple[Path, Path],
    listeners: object,
    lightbus: Callable[..., None],
) -> None:
    @listens_to("shop.order_placed", listener_name="book", start="beginning")
    def book(event: object, number: int) -> None:
        Effect.objects.create(number=number)

    lightbus(URL=f"{request.getfixturevalue(of)}?ssl_ca_certs={authorities[0]}")
    fire("shop.order_placed", number=1)
    worker = Worker(registry, service_name="shop", process_name="worker", settings=get_settings())
    worker.run_burst()
    worker.client.close()
    assert [effect.number for effect in Effect.objects.all()] == [1]
    assert PASSWORD not in "".join(worker.describe())


def test_the_nodes_of_a_cluster_too(
    address: str, authorities: tuple[Path, Path], lightbus: Callable[..., None]
) -> None:
    """They tell their host names, if they are so configured, because certificates seldom name addresses."""
    directory = authorities[0].parent
    port = free_port()
    node = Server(
        "cluster-enabled yes",
        "cluster-announce-hostname localhost",
        "cluster-preferred-endpoint-type hostname",
        "tls-cluster yes",
        f"tls-port {port}",
        f"tls-cert-file {directory / 'server.pem'}",
        f"tls-key-file {directory / 'server.key'}",
        f"tls-ca-cert-file {authorities[0]}",
        "tls-auth-clients no",
        binary=redis_server(),
        password=PASSWORD,
    )
    with node, node.client() as client:
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        eventually(lambda: "cluster_state:ok" in ask(node, "CLUSTER", "INFO"))
        lightbus(URL=f"rediss+cluster://:{PASSWORD}@localhost:{port}?ssl_ca_certs={authorities[0]}")
        assert fire("shop.order_placed", number=1).stream_id
        lightbus(URL=f"rediss+cluster://:{PASSWORD}@localhost:{port}?ssl_ca_certs={authorities[1]}")
        with pytest.raises(BusUnavailable, match="certificate verify failed"):
            fire("shop.order_placed", number=1)


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("?ssl_ca_certs={others}", "certificate verify failed"),
        ("", "certificate verify failed"),
        ("?ssl_ca_certs=/nowhere/ca.pem", "No such file"),
    ],
)
def test_who_cannot_prove_its_name_is_not_spoken_to(
    option: str, reason: str, address: str, authorities: tuple[Path, Path], lightbus: Callable[..., None]
) -> None:
    lightbus(URL=address + option.format(others=authorities[1]))
    with pytest.raises(BusUnavailable, match=reason) as caught:
        fire("shop.order_placed", number=1)
    assert PASSWORD not in str(caught.value)
    assert "ssl_ca_certs" not in str(caught.value)


def test_another_name_than_the_certificates_is_refused(
    address: str, authorities: tuple[Path, Path], lightbus: Callable[..., None]
) -> None:
    lightbus(URL=f"{address.replace('localhost', '127.0.0.1')}?ssl_ca_certs={authorities[0]}")
    with pytest.raises(BusUnavailable, match=r"127\.0\.0\.1"):
        fire("shop.order_placed", number=1)


def test_a_sentinel_that_cannot_prove_its_name_is_not_spoken_to(
    guarded_address: str, authorities: tuple[Path, Path], lightbus: Callable[..., None]
) -> None:
    lightbus(URL=f"{guarded_address}?ssl_ca_certs={authorities[1]}")
    with pytest.raises(BusUnavailable, match="No master found for 'mymaster'") as caught:
        fire("shop.order_placed", number=1)
    assert PASSWORD not in str(caught.value)


def test_an_address_is_shown_without_its_options_and_password() -> None:
    url = f"rediss://me:{PASSWORD}@redis.example.com:6380/2?ssl_ca_certs=/etc/ca.pem&password={PASSWORD}"
    assert find_problems({"SERVICE_NAME": "shop", "URL": url}) == []
    assert str(RedisClient(url, timeout=1)) == "rediss://redis.example.com:6380/2"
