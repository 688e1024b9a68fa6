"""Folder, dashboards and data source in a Grafana: a double of 10, one of 12, and a live one where
`FORCEGAUGE_TEST_GRAFANA_URL` and `FORCEGAUGE_TEST_GRAFANA_TOKEN` name it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from forcegauge_monitor import grafana_http
from forcegauge_monitor.grafana import applying, mark, removing, shipped_dashboards
from forcegauge_monitor.grafana_http import AwayError, Grafana, RefusedError
from forcegauge_monitor.grafana_steps import DATASOURCE, FOLDER, Wanted, settled
from tests.monitor.grafana_double import TOKEN, Double
from tests.monitor.grafana_served import grafana_double

LIVE = os.environ.get("FORCEGAUGE_TEST_GRAFANA_URL")
BOARDS: list[dict[str, Any]] = [
    {
        "uid": f"forcegauge-{name}",
        "title": f"forcegauge / {name.title()}",
        "tags": ["forcegauge"],
        "schemaVersion": 39,
        "panels": [{"title": "Squeeze index", "type": "timeseries", "unit": "nats"}],
    }
    for name in ("fleet", "run")
]
WANTED = Wanted(BOARDS)


@dataclass
class Site:
    """A Grafana, and its double's state where it is one."""

    grafana: Grafana
    double: Double | None = None

    def apply(self, wanted: Wanted = WANTED) -> list[tuple[str, str]]:
        return _said([settled(look) for look in applying(self.grafana, wanted)])

    def diff(self, wanted: Wanted = WANTED) -> list[tuple[str, str]]:
        return _said([look() for look in applying(self.grafana, wanted)])

    def remove(self, wanted: Wanted = WANTED) -> list[tuple[str, str]]:
        return _said([settled(look) for look in removing(self.grafana, wanted)])

    def board(self, uid: str) -> Any:
        return self.grafana.call("GET", f"/dashboards/uid/{uid}")["dashboard"]

    def edit(self, uid: str, **fields: Any) -> None:
        """Somebody saves a dashboard in Grafana's pages."""
        found = self.grafana.call("GET", f"/dashboards/uid/{uid}")
        body = {"dashboard": {**found["dashboard"], **fields}, "folderUid": FOLDER, "message": ""}
        self.grafana.call("POST", "/dashboards/db", body)


def _said(steps: list[Any]) -> list[tuple[str, str]]:
    return [(change.state, change.name) for step in steps for change in step.changes]


def states(changes: list[tuple[str, str]]) -> set[str]:
    return {state for state, _ in changes}


@pytest.fixture(params=["10.4.1", "12.3.0", *(["live"] if LIVE else [])])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    """An empty Grafana, of each kind."""
    if request.param == "live":
        with Grafana(str(LIVE), os.environ["FORCEGAUGE_TEST_GRAFANA_TOKEN"]) as grafana:
            made = Site(grafana)
            made.remove(replace(WANTED, overwrite=True))
            yield made
            made.remove(replace(WANTED, overwrite=True))
        return
    with grafana_double(request.param) as (double, url), Grafana(url, TOKEN) as grafana:
        yield Site(grafana, double)


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Site, Double]]:
    """A double, and a client that does not wait between two attempts."""
    monkeypatch.setattr(grafana_http, "PAUSES", (0.0, 0.0, 0.0))
    with grafana_double() as (double, url), Grafana(url, TOKEN) as grafana:
        yield Site(grafana, double), double


def test_the_first_apply_makes_folder_and_dashboards(site: Site) -> None:
    assert states(site.apply()) == {"created"}
    assert site.board("forcegauge-run")["title"] == "forcegauge / Run"
    found = site.grafana.call("GET", "/dashboards/uid/forcegauge-run")
    assert found["meta"]["folderUid"] == FOLDER


def test_the_second_apply_changes_nothing(site: Site) -> None:
    site.apply(replace(WANTED, prometheus="http://prometheus:9090"))
    versions = [site.board(board["uid"])["version"] for board in BOARDS]
    assert states(site.apply(replace(WANTED, prometheus="http://prometheus:9090"))) == {"same"}
    assert [site.board(board["uid"])["version"] for board in BOARDS] == versions


def test_the_second_apply_writes_nothing(local: tuple[Site, Double]) -> None:
    site, double = local
    site.apply()
    double.asked.clear()
    site.apply()
    assert double.written == []


def test_diff_says_what_apply_does_and_writes_nothing(local: tuple[Site, Double]) -> None:
    site, double = local
    wanted = replace(WANTED, prometheus="http://prometheus:9090")
    before = site.diff(wanted)
    assert double.written == []
    assert site.apply(wanted) == before


def test_a_dashboard_that_changed_here_is_saved_and_the_others_are_not(site: Site) -> None:
    site.apply()
    newer = [BOARDS[0], {**BOARDS[1], "title": "forcegauge / Run 2"}]
    assert [state for state, _ in site.apply(Wanted(newer))] == ["same", "same", "changed"]
    assert site.board("forcegauge-run")["title"] == "forcegauge / Run 2"


def test_what_changes_is_told_by_its_path(local: tuple[Site, Double]) -> None:
    site, _ = local
    site.apply()
    panel = {"title": "Squeeze index", "type": "timeseries", "unit": "short"}
    newer = Wanted([{**BOARDS[0], "panels": [panel]}])
    steps = [look() for look in applying(site.grafana, newer)]
    assert steps[1].changes[0].lines == [
        '-panels[Squeeze index].unit: "nats"',
        '+panels[Squeeze index].unit: "short"',
    ]


def test_a_dashboard_that_somebody_edited_is_kept(site: Site) -> None:
    site.apply()
    site.edit("forcegauge-run", title="Mine")
    newer = Wanted([{**board, "editable": False} for board in BOARDS])
    assert [state for state, _ in site.apply(newer)] == ["same", "changed", "kept"]
    assert site.board("forcegauge-run")["title"] == "Mine"


def test_an_edited_dashboard_is_replaced_when_that_is_asked_for(site: Site) -> None:
    site.apply()
    site.edit("forcegauge-run", title="Mine")
    assert ("changed", "forcegauge-run") in site.apply(replace(WANTED, overwrite=True))
    assert site.board("forcegauge-run")["title"] == "forcegauge / Run"
    assert states(site.apply()) == {"same"}


def test_an_edit_that_was_taken_back_is_no_edit(site: Site) -> None:
    site.apply()
    site.edit("forcegauge-run", title="Mine")
    site.edit("forcegauge-run", title="forcegauge / Run")
    assert states(site.apply()) == {"same"}


def test_what_grafana_itself_makes_of_a_dashboard_is_no_difference(
    local: tuple[Site, Double],
) -> None:
    site, double = local
    site.apply()
    double.dashboards["forcegauge-run"]["dashboard"] |= {"schemaVersion": 42, "preload": False}
    assert states(site.apply()) == {"same"}


def test_who_edited_is_told(local: tuple[Site, Double]) -> None:
    site, double = local
    site.apply()
    double.edit("forcegauge-run", by="ada", title="Mine")
    notes = [look().changes[0].note for look in applying(site.grafana, WANTED)]
    assert notes[2] == "ada changed it in Grafana; --overwrite replaces it"


def test_a_dashboard_saved_in_the_newer_format_is_kept_until_told_otherwise(
    local: tuple[Site, Double],
) -> None:
    site, double = local
    site.apply()
    double.edit("forcegauge-run")
    double.dashboards["forcegauge-run"]["v2"] = True
    assert ("kept", "forcegauge-run") in site.apply()
    site.apply(replace(WANTED, overwrite=True))
    assert site.board("forcegauge-run")["title"] == "forcegauge / Run"


def test_a_dashboard_that_somebody_moved_stays_where_it_is(local: tuple[Site, Double]) -> None:
    site, double = local
    site.apply()
    double.folders["team"] = {"uid": "team"}
    double.dashboards["forcegauge-run"]["folder"] = "team"
    site.apply(Wanted([{**board, "editable": False} for board in BOARDS]))
    assert double.dashboards["forcegauge-run"]["folder"] == "team"
    assert double.dashboards["forcegauge-run"]["dashboard"]["editable"] is False


@pytest.mark.parametrize(
    ("what", "note"),
    [({"provisioned": True}, "Grafana reads it from a file"), ({}, "somebody else's")],
)
def test_a_dashboard_of_others_under_our_uid_is_kept(
    local: tuple[Site, Double], what: dict[str, bool], note: str
) -> None:
    site, double = local
    site.apply()
    double.edit("forcegauge-run", tags=["forcegauge"] if what else [], title="Theirs")
    double.dashboards["forcegauge-run"].update(what)
    step = [look() for look in applying(site.grafana, replace(WANTED, overwrite=True))][2]
    assert step.changes[0].state == "kept"
    assert note in step.changes[0].note
    assert ("kept", "forcegauge-run") in site.remove(replace(WANTED, overwrite=True))


def test_another_save_at_the_same_moment_is_a_conflict_and_stays(
    local: tuple[Site, Double],
) -> None:
    site, double = local
    site.apply()
    looks = list(applying(site.grafana, Wanted([{**BOARDS[0], "editable": False}])))
    step = looks[1]()
    double.edit("forcegauge-fleet", title="Mine")
    assert step.write is not None
    with pytest.raises(RefusedError, match=r"somebody else changed it just now.*HTTP 412"):
        step.write()
    assert site.board("forcegauge-fleet")["title"] == "Mine"


def test_a_data_source_keeps_what_somebody_set_and_changes_its_url_alone(site: Site) -> None:
    site.apply(replace(WANTED, prometheus="http://old:9090"))
    path = f"/datasources/uid/{DATASOURCE}"
    live = site.grafana.call("GET", path)
    data = {**live["jsonData"], "timeInterval": "5s"}
    site.grafana.call("PUT", path, {**live, "jsonData": data})
    for url in ("http://newer:9090", "http://new:9090"):
        assert ("changed", DATASOURCE) in site.apply(replace(WANTED, prometheus=url))
    live = site.grafana.call("GET", path)
    assert (live["url"], live["jsonData"]["timeInterval"]) == ("http://new:9090", "5s")


def test_a_data_source_whose_url_somebody_changed_is_kept(site: Site) -> None:
    wanted = replace(WANTED, prometheus="http://old:9090")
    site.apply(wanted)
    path = f"/datasources/uid/{DATASOURCE}"
    site.grafana.call("PUT", path, {**site.grafana.call("GET", path), "url": "http://theirs:9090"})
    assert ("kept", DATASOURCE) in site.apply(wanted)
    assert ("changed", DATASOURCE) in site.apply(replace(wanted, overwrite=True))


def test_remove_takes_what_is_ours_and_leaves_the_rest(site: Site) -> None:
    wanted = replace(WANTED, prometheus="http://prometheus:9090")
    site.apply(wanted)
    theirs = {"uid": "theirs", "title": "Theirs", "tags": ["forcegauge"]}
    body = {"dashboard": {**theirs, "version": 0}, "folderUid": FOLDER}
    site.grafana.call("POST", "/dashboards/db", body)
    assert states(site.remove(wanted)) == {"removed", "kept"}
    assert site.grafana.find("/dashboards/uid/forcegauge-run") is None
    assert site.grafana.find(f"/datasources/uid/{DATASOURCE}") is None
    assert site.board("theirs")["title"] == "Theirs"
    site.grafana.call("DELETE", "/dashboards/uid/theirs")
    assert site.remove(wanted) == [("removed", FOLDER)]


def test_remove_where_nothing_is_does_nothing(local: tuple[Site, Double]) -> None:
    site, double = local
    assert site.remove() == []
    assert double.written == []


def test_remove_keeps_what_somebody_edited(site: Site) -> None:
    site.apply()
    site.edit("forcegauge-run", title="Mine")
    changes = site.remove()
    assert ("kept", "forcegauge-run") in changes
    assert ("kept", FOLDER) in changes
    assert site.board("forcegauge-run")["title"] == "Mine"


def test_remove_does_not_mind_what_lies_in_other_folders(local: tuple[Site, Double]) -> None:
    site, double = local
    double.major = 10
    site.apply()
    double.folders["team"] = {"uid": "team"}
    double.dashboards["theirs"] = {"dashboard": {"title": "Theirs"}, "folder": "team"}
    assert site.remove()[-1] == ("removed", FOLDER)
    assert list(double.dashboards) == ["theirs"]


def test_remove_keeps_a_folder_with_a_library_panel(local: tuple[Site, Double]) -> None:
    site, double = local
    site.apply()
    double.panels.append({"name": "Shared", "folderUid": FOLDER})
    assert site.remove()[-1] == ("kept", FOLDER)


@pytest.mark.parametrize("fault", ["drop", "lose"])
def test_killed_anywhere_and_called_again_apply_ends_as_undisturbed(fault: str) -> None:
    wanted = replace(WANTED, prometheus="http://prometheus:9090")
    with grafana_double() as (double, url), Grafana(url, TOKEN, pauses=()) as grafana:
        Site(grafana).apply(wanted)
        right, requests = double.state(), len(double.asked)
    for number in range(requests):
        with grafana_double() as (double, url), Grafana(url, TOKEN, pauses=()) as grafana:
            double.faults = [*["pass"] * number, fault]
            with pytest.raises(AwayError):
                Site(grafana).apply(wanted)
            Site(grafana).apply(wanted)
            assert double.state() == right, number
            assert states(Site(grafana).apply(wanted)) == {"same"}


@pytest.mark.parametrize("fault", [500, 502, 503, 429, "drop", "lose"])
def test_one_failure_anywhere_is_outlived(local: tuple[Site, Double], fault: int | str) -> None:
    site, double = local
    wanted = replace(WANTED, prometheus="http://prometheus:9090")
    site.apply(wanted)
    requests = len(double.asked)
    right = double.state()
    for number in range(requests):
        with grafana_double() as (other, url), Grafana(url, TOKEN) as grafana:
            other.faults = [*["pass"] * number, fault]
            Site(grafana).apply(wanted)
            assert other.state() == right, number


def test_shipped_dashboards_have_the_uids_titles_and_tag_that_apply_and_remove_go_by() -> None:
    boards = shipped_dashboards()
    assert {board["uid"] for board in boards} == {
        f"forcegauge-{name}" for name in ("fleet", "run", "snapshots", "compare", "operations")
    }
    assert all("forcegauge" in board["tags"] for board in boards)
    assert len({mark(board) for board in boards}) == 5
