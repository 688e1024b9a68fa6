from __future__ import annotations

from pathlib import Path

import pytest

from forcegauge.errors import InputError
from forcegauge_monitor.settings import PREFIX, Settings, load_settings


def test_flags_go_before_the_environment_and_that_before_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "monitor.toml"
    file.write_text('port = 1\nqueue = "gpu"\nstorage = "/of/file"\n')
    monkeypatch.setenv(f"{PREFIX}PORT", "2")
    monkeypatch.setenv(f"{PREFIX}STORAGE", "/of/environment")
    settings = load_settings(file, port=3, bind=None)
    assert (settings.port, settings.storage, settings.queue) == (3, "/of/environment", "gpu")
    assert settings.bind == "127.0.0.1"


def test_settings_are_read_from_json(tmp_path: Path) -> None:
    file = tmp_path / "monitor.json"
    file.write_text('{"roots": ["/a", "/b"]}')
    assert load_settings(file).roots == ("/a", "/b")


def test_lists_in_the_environment_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{PREFIX}ROOTS", "/runs, s3://bucket/runs,")
    assert load_settings().roots == ("/runs", "s3://bucket/runs")


@pytest.mark.parametrize("text", ["prot = 1", "port = 99999", "port =", "queue = 'no such!'"])
def test_a_file_with_a_mistake_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "monitor.toml"
    file.write_text(text)
    with pytest.raises(InputError):
        load_settings(file)


def test_an_unknown_key_of_a_file_is_named_with_the_known_ones(tmp_path: Path) -> None:
    file = tmp_path / "monitor.toml"
    file.write_text("prot = 1\n")
    with pytest.raises(InputError, match=r"prot: no such setting.*redis_url.*port"):
        load_settings(file)


def test_an_unknown_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{PREFIX}PROT", "1")
    with pytest.raises(InputError, match="FORCEGAUGE_MONITOR_PROT: no such setting"):
        load_settings()


def test_kubernetes_links_to_the_service_are_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "PORT": "tcp://10.0.0.7:8790",
        "SERVICE_HOST": "10.0.0.7",
        "SERVICE_PORT_HTTP": "8790",
        "PORT_8790_TCP_ADDR": "10.0.0.7",
    }.items():
        monkeypatch.setenv(f"{PREFIX}{name}", value)
    assert load_settings().port == 8790


def test_a_missing_file_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.toml: cannot be read \(No such file"):
        load_settings(tmp_path / "none.toml")


def test_a_wrong_value_is_named_but_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{PREFIX}STALE_SECONDS", "hunter2")
    with pytest.raises(InputError, match="stale_seconds") as caught:
        load_settings()
    assert "hunter2" not in str(caught.value)


def test_secrets_are_not_in_the_settings_text() -> None:
    settings = Settings(
        redis_url="redis://:hunter2@h/0", broker_url="redis://:hunter2@b", tokens=("hunter2",)
    )
    assert "hunter2" not in f"{settings!r} {settings}"
