"""How the supervised etcd is started, and what is said when it cannot be."""
import socket

import pytest

from control.kernel import etcd_server
from control.kernel.errors import Unavailable
from control.kernel.etcd_server import Config
from tests.conftest import Etcd, free_port


@pytest.fixture
def config(tmp_path) -> Config:
    return Config(data_dir=tmp_path / "data", credentials=etcd_server.server_credentials(tmp_path / "pki"),
                  client_port=free_port(), peer_port=free_port(), binary="sh")


def test_a_missing_binary_says_which_package_has_it(config):
    object.__setattr__(config, "binary", "no-such-etcd")
    for call in (etcd_server.command, etcd_server.prepare):
        with pytest.raises(Unavailable, match="apt-get install etcd-server"):
            call(config)


@pytest.mark.parametrize("which", ["client_port", "peer_port"])
def test_a_port_in_use_is_named_before_anything_starts(config, which):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        object.__setattr__(config, which, port)
        with pytest.raises(Unavailable, match=rf"127\.0\.0\.1:{port} cannot be used"):
            etcd_server.prepare(config)


def test_the_data_directory_is_private(config):
    etcd_server.prepare(config)
    etcd_server.prepare(config)
    assert config.data_dir.stat().st_mode & 0o777 == 0o700


def test_it_listens_on_loopback_with_client_certificates_only(config):
    arguments = etcd_server.command(config)
    assert all("127.0.0.1" in argument for argument in arguments if "urls=" in argument)
    assert all("https://" in argument for argument in arguments if "urls=" in argument)
    assert {"--client-cert-auth", "--peer-client-cert-auth"} <= set(arguments)


def test_variables_of_etcd_in_the_environment_do_not_reach_it(monkeypatch):
    monkeypatch.setenv("ETCD_DATA_DIR", "/elsewhere")
    monkeypatch.setenv("HOME", "/root")
    environment = etcd_server.environment()
    assert "ETCD_DATA_DIR" not in environment
    assert environment["HOME"] == "/root"


async def test_waiting_for_an_etcd_that_never_comes_ends_with_the_endpoint(config):
    endpoint = f"https://127.0.0.1:{free_port()}"
    with pytest.raises(Unavailable, match=rf"not ready after 0\.3 s.*{endpoint}"):
        await etcd_server.wait_ready([endpoint], config.credentials, timeout=0.3)


@pytest.mark.etcd
async def test_it_starts_again_on_its_data(own_etcd: Etcd):
    await own_etcd.ready()
    own_etcd.kill()
    own_etcd.start()
    await own_etcd.ready()
