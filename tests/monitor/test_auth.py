from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from forcegauge.errors import InputError
from forcegauge_monitor.auth import Tokens, new_token
from forcegauge_monitor.guard import KNOWN_CLIENTS, Rate
from forcegauge_monitor.settings import Settings
from forcegauge_monitor.store import Store
from tests.monitor.asking import RUNS, api, is_problem
from tests.monitor.storing import Clock


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_a_token_is_kept_as_its_hash_alone() -> None:
    token, line = new_token("write")
    assert line == f"write:{hashlib.sha256(token.encode()).hexdigest()}"
    assert new_token("write")[0] != token


def test_each_token_has_its_role(tmp_path: Path) -> None:
    (reader, read), (writer, write) = new_token("read"), new_token("write")
    file = tmp_path / "tokens"
    file.write_text(f"# the team's\n{read}  # dashboards\n\n")
    tokens = Tokens(Settings(tokens_file=file, tokens=(write,)))
    assert tokens.role(f"Bearer {reader}") == "read"
    assert tokens.role(f"bearer {writer}") == "write"


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer wrong", "Basic {token}", "{token}"])
def test_any_other_header_has_no_role(header: str | None) -> None:
    token, line = new_token("write")
    tokens = Tokens(Settings(tokens=(line,)))
    assert tokens.role(header and header.format(token=token)) is None


def test_the_hash_itself_opens_nothing() -> None:
    _, line = new_token("write")
    assert Tokens(Settings(tokens=(line,))).role(f"Bearer {line.partition(':')[2]}") is None


def test_a_token_is_changed_without_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    (old, first), (new, second) = new_token("write"), new_token("write")
    file.write_text(first)
    tokens = Tokens(Settings(tokens_file=file))
    file.write_text(second)
    assert [tokens.role(f"Bearer {each}") for each in (old, new)] == [None, "write"]


@pytest.mark.parametrize("text", ["", "# none\n", "fg_the-token-itself", "admin:" + "0" * 64])
def test_a_file_without_a_usable_token_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "tokens"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        Tokens(Settings(tokens_file=file))
    assert "the-token-itself" not in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="tokens_file: cannot be read"):
        Tokens(Settings(tokens_file=tmp_path / "none"))


def test_without_tokens_it_listens_to_this_machine_alone() -> None:
    with pytest.raises(InputError, match=r"bind: 0\.0\.0\.0 is open to others"):
        Tokens(Settings(bind="0.0.0.0"))
    assert Tokens(Settings(bind="::1")).open


def test_a_request_needs_a_token_of_its_role(store: Store, tmp_path: Path) -> None:
    (reader, read), (writer, write) = new_token("read"), new_token("write")
    with api(store, tmp_path, tokens=(read, write)) as it:
        answer = it.client.get(RUNS)
        assert is_problem(answer, 401)
        assert answer.headers["www-authenticate"] == "Bearer"
        assert it.client.get(RUNS, headers=bearer(reader)).status_code == 200
        body = {"run": "a", "record_id": "first"}
        assert is_problem(it.client.post(RUNS, json=body, headers=bearer(reader)), 403)
        assert it.client.post(RUNS, json=body, headers=bearer(writer)).status_code == 201


def test_what_comes_without_a_token_is_not_even_read(store: Store, tmp_path: Path) -> None:
    with api(store, tmp_path, tokens=(new_token("write")[1],)) as it:
        assert is_problem(it.client.post(RUNS, content=b"{"), 401)


@pytest.mark.parametrize("page", ["/metrics", "/sd/targets", "/runbooks/ForceGaugeSqueezing"])
def test_pages_need_a_token_only_where_told(store: Store, tmp_path: Path, page: str) -> None:
    token, line = new_token("read")
    with api(store, tmp_path, tokens=(line,)) as it:
        assert it.client.get(page).status_code == 200
    with api(store, tmp_path, tokens=(line,), protect_pages=True) as it:
        assert is_problem(it.client.get(page), 401)
        assert it.client.get(page, headers=bearer(token)).status_code == 200
        assert it.client.get("/healthz").status_code == 200


def test_tokens_that_cannot_be_read_any_more_open_nothing(store: Store, tmp_path: Path) -> None:
    token, line = new_token("write")
    file = tmp_path / "tokens"
    file.write_text(line)
    with api(store, tmp_path, tokens_file=file) as it:
        file.unlink()
        assert is_problem(it.client.get(RUNS, headers=bearer(token)), 503)


def test_without_tokens_another_name_of_this_machine_is_refused(
    store: Store, tmp_path: Path
) -> None:
    with api(store, tmp_path) as it:
        assert is_problem(it.client.get(RUNS, headers={"Host": "evil.example"}), 403)
        assert it.client.get(RUNS, headers={"Host": "127.0.0.1:8790"}).status_code == 200


def test_a_client_has_a_rate() -> None:
    clock = Clock()
    rate = Rate(2, 3, clock)
    assert [rate.allows("a") for _ in range(4)] == [True, True, True, False]
    assert rate.allows("b")
    clock.now += 1
    assert [rate.allows("a") for _ in range(3)] == [True, True, False]


def test_no_rate_is_no_limit() -> None:
    rate = Rate(0, 1)
    assert all(rate.allows("a") for _ in range(10))


def test_only_so_many_clients_are_remembered() -> None:
    rate = Rate(1, 1, Clock())
    assert all(rate.allows(str(client)) for client in range(KNOWN_CLIENTS + 1))
    assert rate.allows("0")
    assert not rate.allows(str(KNOWN_CLIENTS))


def test_too_many_requests_are_refused_but_health_is_told(store: Store, tmp_path: Path) -> None:
    with api(store, tmp_path, requests_per_second=0.001, burst=1) as it:
        assert it.client.get(RUNS).status_code == 200
        answer = it.client.get(RUNS)
        assert is_problem(answer, 429)
        assert int(answer.headers["retry-after"]) > 0
        assert it.client.get("/healthz").status_code == 200
