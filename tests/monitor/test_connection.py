from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from forcegauge.errors import InputError
from forcegauge_monitor.connection import connect
from forcegauge_monitor.store import Store, Unavailable
from tests.monitor.storing import RUN, snapshot
from tests.servers import free_port, redis_server, require, server


def test_a_password_is_given(tmp_path: Path) -> None:
    port = free_port()
    with redis_server(tmp_path, "--requirepass", "hunter2", port=port):
        Store(f"redis://:hunter2@127.0.0.1:{port}/1").ping()
        with pytest.raises(Unavailable) as caught:
            Store(f"redis://:hunter3@127.0.0.1:{port}/1").ping()
    assert "hunter" not in str(caught.value)


def test_tls_is_spoken_and_the_certificate_checked(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 "
        f"-subj /CN=localhost -addext subjectAltName=DNS:localhost -keyout {key} -out {certificate}"
    )
    subprocess.run(make.split(), check=True, capture_output=True)
    port = free_port()
    tls = ("--tls-port", str(port), "--tls-cert-file", str(certificate), "--tls-key-file", str(key))
    with redis_server(tmp_path, *tls, "--tls-ca-cert-file", str(certificate),
                      "--tls-auth-clients", "no"):  # fmt: skip
        url = f"rediss://localhost:{port}/0"
        Store(f"{url}?ssl_ca_certs={certificate}").ping()
        with pytest.raises(Unavailable):
            Store(url).ping()


def test_sentinels_name_the_master(tmp_path: Path) -> None:
    port, sentinel = free_port(), free_port()
    (tmp_path / "sentinel").mkdir()
    config = tmp_path / "sentinel" / "sentinel.conf"
    config.write_text(
        f"port {sentinel}\nbind 127.0.0.1\nsentinel monitor main 127.0.0.1 {port} 1\n"
        "sentinel auth-pass main hunter2\n"
    )
    command = [require("redis-server"), str(config), "--sentinel"]
    url = f"redis+sentinel://:hunter2@127.0.0.1:{free_port()},127.0.0.1:{sentinel}/main/2"
    with (
        redis_server(tmp_path, "--requirepass", "hunter2", port=port) as direct,
        server(command, tmp_path / "sentinel", lambda: _pings(sentinel)),
    ):
        Store(url).register(RUN)
        master = Store(direct.replace("unix://", "unix://:hunter2@").replace("db=0", "db=2"))
        assert master.run("a") is not None


def _pings(port: int) -> bool:
    client = connect(f"redis://127.0.0.1:{port}")
    try:
        return bool(client.ping())
    except Unavailable:
        return False
    finally:
        client.close()


@pytest.mark.parametrize(
    "url", ["localhost", "http://h", "redis+sentinel://h/", "redis+sentinel://h:x/s", "redis://h:x"]
)
def test_what_is_no_url_is_one_clear_line(url: str) -> None:
    with pytest.raises(InputError, match=r"redis_url: that is no Redis URL\. Use redis://"):
        Store(url)


def test_a_redis_that_is_away_is_told_at_once() -> None:
    begin = time.monotonic()
    with pytest.raises(Unavailable):
        Store(f"redis://127.0.0.1:{free_port()}").runs()
    assert time.monotonic() - begin < 3


def test_redis_is_found_again_with_all_that_was_told(tmp_path: Path) -> None:
    kept = ("--appendonly", "yes", "--appendfsync", "always")
    with redis_server(tmp_path, *kept) as url:
        store = Store(url)
        store.register(RUN)
        store.ask(snapshot("one"))
    with pytest.raises(Unavailable):
        store.runs()
    with redis_server(tmp_path, *kept):
        assert store.register(RUN) == "same"
        assert [each.id for each in store.unattended()] == ["one"]
        assert store.begin("a", "one", "worker")
