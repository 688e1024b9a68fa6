"""What a Grafana's answers, and silence, become: one line, and another attempt where that helps."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from forcegauge.errors import InputError, RunError
from forcegauge_monitor import grafana_http
from forcegauge_monitor.grafana_http import (
    AwayError,
    Grafana,
    RefusedError,
    check_url,
    open_grafana,
    told,
)
from forcegauge_monitor.settings import Settings
from tests.monitor.grafana_double import READER, ROUTES, TOKEN, Double
from tests.monitor.grafana_served import grafana_double
from tests.servers import free_port


@pytest.fixture
def double() -> Iterator[tuple[Double, str]]:
    with grafana_double() as (made, url):
        yield made, url


@pytest.fixture
def grafana(double: tuple[Double, str]) -> Iterator[Grafana]:
    with Grafana(double[1], TOKEN, pauses=(0.0, 0.0)) as made:
        yield made


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (401, InputError, "the token is wrong, expired or of another Grafana"),
        (403, InputError, "the token does not allow this"),
        (404, InputError, "is that the address of a Grafana"),
        (409, RunError, "somebody else changed it just now"),
        (412, RunError, "somebody else changed it just now"),
        (429, InputError, "too many requests"),
        (500, RunError, "Grafana fails"),
        (503, RunError, "Grafana fails"),
        (422, InputError, "Grafana refuses"),
    ],
)
def test_every_status_is_told_in_one_line_with_what_it_means(
    double: tuple[Double, str],
    grafana: Grafana,
    status: int,
    code: type[Exception],
    words: str,
) -> None:
    double[0].faults = [status] * 3
    with pytest.raises(RefusedError, match=words) as caught:
        grafana.call("GET", "/folders/a")
    error = told(caught.value)
    assert isinstance(error, code)
    assert "GET /grafana/api/folders/a" in str(error)
    assert f"HTTP {status}" in str(error)
    assert "\n" not in str(error)


def test_what_grafana_itself_says_is_told_too(double: tuple[Double, str]) -> None:
    with Grafana(double[1], READER) as grafana, pytest.raises(RefusedError) as caught:
        grafana.call("POST", "/folders", {"uid": "a"})
    assert "Permissions needed: folders:create" in str(caught.value)


def test_a_failure_is_tried_again_so_often_and_no_oftener(
    double: tuple[Double, str], grafana: Grafana
) -> None:
    double[0].faults = [503, 500]
    assert grafana.call("GET", "/health")["version"] == "12.3.0"
    double[0].asked.clear()
    double[0].faults = [503] * 9
    with pytest.raises(RefusedError):
        grafana.call("GET", "/health")
    assert len(double[0].asked) == 3


def test_what_grafana_refuses_for_good_is_not_tried_again(
    double: tuple[Double, str], grafana: Grafana
) -> None:
    double[0].faults = [400]
    with pytest.raises(RefusedError):
        grafana.call("GET", "/health")
    assert len(double[0].asked) == 1


@pytest.mark.parametrize("fault", ["drop", "hang"])
def test_silence_is_told_as_such(double: tuple[Double, str], fault: str) -> None:
    double[0].faults = [fault]
    with Grafana(double[1], TOKEN, pauses=(), timeout=0.3) as grafana:
        with pytest.raises(AwayError, match=r"no (answer within 0\.3 s|Grafana answers \(R)") as e:
            grafana.call("GET", "/health")
        assert isinstance(told(e.value), RunError)


def test_a_port_where_nobody_listens_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grafana_http, "PAUSES", ())
    with (
        Grafana(f"http://127.0.0.1:{free_port()}", TOKEN) as grafana,
        pytest.raises(AwayError, match="Connection refused"),
    ):
        grafana.call("GET", "/health")


def test_an_answer_without_a_body_is_no_failure(
    double: tuple[Double, str], grafana: Grafana
) -> None:
    assert grafana.call("DELETE", "/v1/provisioning/alert-rules/none") is None


def test_a_page_is_no_grafana(double: tuple[Double, str], grafana: Grafana) -> None:
    double[0].faults = ["page"]
    with pytest.raises(InputError, match="what answers there is no Grafana"):
        grafana.find("/folders/a")


def test_a_redirect_is_not_followed_with_the_token(
    double: tuple[Double, str], grafana: Grafana
) -> None:
    double[0].faults = [302]
    with pytest.raises(RefusedError, match=r"leads to https://login\.example/: give that URL"):
        grafana.call("POST", "/folders", {"uid": "a"})


def test_a_missing_thing_is_none_and_its_removal_no_failure(grafana: Grafana) -> None:
    assert grafana.find("/folders/none") is None
    grafana.drop("/folders/none")


@pytest.mark.parametrize("prefix", ["", "/grafana", "/a/b"])
def test_a_sub_path_is_part_of_the_url(prefix: str) -> None:
    with grafana_double(prefix=prefix) as (_, url):
        for form in (url, f"{url}/"):
            with Grafana(form, TOKEN) as grafana:
                grafana.check()
                assert grafana.find("/folders/none") is None


def test_an_older_grafana_is_refused(double: tuple[Double, str], grafana: Grafana) -> None:
    double[0].version = "9.5.2"
    with pytest.raises(InputError, match=r"this Grafana is 9\.5\.2\. forcegauge needs 10"):
        grafana.check()
    double[0].version = ""
    grafana.check()


def test_a_certificate_of_nobody_known_is_told(tmp_path: Path) -> None:
    names = ("-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "cert"), "-days", "2")
    made = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost")
    subprocess.run([*made, *names], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    with (
        grafana_double(context=context) as (_, url),
        Grafana(url, TOKEN, pauses=()) as grafana,
        pytest.raises(InputError, match=r"TLS fails \(CERTIFICATE_VERIFY_FAILED"),
    ):
        grafana.call("GET", "/health")


@pytest.mark.parametrize(
    "url",
    ["grafana:3000", "ftp://h", "http://", "http://u:hunter2@h", "http://h/?a=b", "http://h h"],
)
def test_what_is_no_url_of_a_server_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(InputError) as caught:
        check_url(url, "grafana_url")
    assert "hunter2" not in str(caught.value)


def test_the_token_file_is_read_each_time_and_goes_before_the_token(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    with grafana_double() as (_, url):
        settings = Settings(grafana_url=url, grafana_token="old", grafana_token_file=file)
        with open_grafana(settings) as grafana:
            assert grafana.find("/folders/none") is None


@pytest.mark.parametrize("text", [None, "", "two words", "glsa_\x07bell", "Schlüssel"])
def test_a_token_that_cannot_be_one_is_told_without_telling_it(
    tmp_path: Path, text: str | None
) -> None:
    file = tmp_path / "token"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="token") as caught:
        open_grafana(Settings(grafana_url="http://h", grafana_token_file=file))
    assert not text or text not in str(caught.value)


def test_the_token_is_in_no_text_and_no_file_of_the_settings() -> None:
    settings = Settings(grafana_token=TOKEN)
    assert TOKEN not in f"{settings!r} {settings} {settings.model_dump_json()}"


def test_without_a_url_it_is_told_where_to_put_it() -> None:
    with pytest.raises(InputError, match="FORCEGAUGE_MONITOR_GRAFANA_URL"):
        open_grafana(Settings(grafana_token="a"))


def test_an_error_that_repeats_the_token_is_told_without_it(
    double: tuple[Double, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    echo = (400, {"message": f"no such token: {TOKEN}"})
    monkeypatch.setitem(ROUTES, "/health", {"GET": lambda *_: echo})
    with Grafana(double[1], TOKEN) as grafana, pytest.raises(RefusedError) as caught:
        grafana.call("GET", "/health")
    assert "no such token: ***" in str(caught.value)
