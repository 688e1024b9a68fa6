"""No secret and no text of the training in what the monitor says, and nothing that unpickles."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from forcegauge_monitor.auth import new_token
from forcegauge_monitor.broker import make_app
from forcegauge_monitor.settings import Settings
from forcegauge_monitor.store import Store
from tests.monitor.asking import RUNS, api
from tests.servers import redis_server

SOURCES = Path(__file__).parents[2] / "monitor" / "forcegauge_monitor"


def test_passwords_and_tokens_are_said_nowhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    token, line = new_token("write")
    wrong = {"Authorization": "Bearer wrong"}
    head = {"Authorization": f"Bearer {token}"}
    said = []
    with redis_server(tmp_path, "--requirepass", "hunter2") as url:
        store = Store(url.replace("unix://", "unix://:hunter2@"))
        with api(store, tmp_path, tokens=(line,)) as it:
            it.client.headers.update(head)
            said += [it.register(), it.register(record_id="second"), it.client.get("/metrics")]
            said += [
                it.register("../a"),
                it.client.get(RUNS, headers=wrong),
            ]
            monkeypatch.setattr(store, "runs", lambda *_: 1 / 0)
            said.append(it.client.get(RUNS))
    with api(store, tmp_path, tokens=(line,)) as it:
        said += [it.client.get("/readyz"), it.client.get(RUNS, headers=head)]
    text = "".join(answer.text for answer in said) + caplog.text
    for secret in ("hunter2", token, line.partition(":")[2]):
        assert secret not in text


def test_a_redis_error_does_not_tell_its_url(tmp_path: Path) -> None:
    store = Store("redis://user:hunter2@127.0.0.1:1/0")
    with pytest.raises(Exception, match="127") as caught:
        store.ping()
    assert "hunter2" not in f"{caught.value!r} {caught.value.__cause__!r}"


def test_tasks_are_json_alone() -> None:
    conf = make_app(Settings()).conf
    assert (conf.accept_content, conf.task_serializer) == (["json"], "json")


def test_no_file_is_unpickled_but_by_an_allow_list() -> None:
    # a subclass of pickle.Unpickler that names what it takes is such a list
    free = re.compile(r"pickle\.(load|loads|Unpickler)\(|\b(cloudpickle|dill|joblib|marshal)\b")
    for path in SOURCES.rglob("*.py"):
        source = re.sub(r"class \w+\(pickle\.Unpickler\):", "", path.read_text())
        assert not free.search(source), path
        safe = re.findall(r"torch\.load\([^\n]*weights_only=True", source)
        assert source.count("torch.load(") == len(safe), path
