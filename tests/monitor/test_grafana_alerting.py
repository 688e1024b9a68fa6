"""Alert rules, contact point and our route in a policy tree that others share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from forcegauge.errors import InputError
from forcegauge_monitor import grafana_alerting, grafana_http
from forcegauge_monitor.grafana import applying
from forcegauge_monitor.grafana_http import AwayError, Grafana, RefusedError
from forcegauge_monitor.grafana_steps import FOLDER, Wanted, settled
from forcegauge_monitor.rules import grafana_groups
from tests.monitor.grafana_double import TOKEN, Double
from tests.monitor.grafana_served import grafana_double
from tests.monitor.test_grafana import BOARDS, Site, states

WEBHOOK = "https://hooks.example/the-secret-path"
SOURCE = "http://prometheus:9090"
THEIRS = {"receiver": "grafana-default-email", "object_matchers": [["team", "=", "ml"]]}


def groups(datasource: str, wait: str = "2m") -> list[dict[str, Any]]:
    """Two rules as in a provisioning file."""
    query = {"refId": "A", "datasourceUid": datasource, "model": {"refId": "A", "expr": "up"}}
    condition = {"refId": "C", "datasourceUid": "__expr__", "model": {"refId": "C"}}
    rules = [
        {
            "uid": f"forcegauge-{name.lower()}",
            "title": f"ForceGauge{name}",
            "condition": "C",
            "data": [query, condition],
            "for": wait,
            "keepFiringFor": "1h",
            "labels": {"severity": "warning"},
        }
        for name in ("Squeezing", "Diverging")
    ]
    return [{"orgId": 1, "name": "forcegauge.runs", "interval": "30s", "rules": rules}]


WANTED = Wanted(BOARDS, prometheus=SOURCE, alerts=groups, webhook=WEBHOOK)


@pytest.fixture(params=["10.4.1", "12.3.0"])
def double(request: pytest.FixtureRequest) -> Iterator[tuple[Site, Double]]:
    with grafana_double(request.param) as (made, url), Grafana(url, TOKEN) as grafana:
        yield Site(grafana, made), made


@pytest.fixture
def site(double: tuple[Site, Double]) -> Site:
    return double[0]


@pytest.fixture
def there(double: tuple[Site, Double]) -> Double:
    return double[1]


def test_rules_contact_point_and_route_are_made_once(site: Site, there: Double) -> None:
    site.apply(WANTED)
    there.asked.clear()
    assert states(site.apply(WANTED)) == {"same"}
    assert there.written == []


def test_rules_lie_in_our_folder_ask_our_data_source_and_cannot_be_edited(
    site: Site, there: Double
) -> None:
    site.apply(WANTED)
    rule = there.rules["forcegauge-squeezing"]
    assert (rule["folderUID"], rule["ruleGroup"]) == (FOLDER, "forcegauge.runs")
    assert rule["data"][0]["datasourceUid"] == "forcegauge-prometheus"
    assert rule["provenance"] == "api"
    assert there.intervals[FOLDER, "forcegauge.runs"] == 30


def test_a_rule_keeps_firing_where_grafana_can(site: Site, there: Double) -> None:
    site.apply(WANTED)
    assert there.rules["forcegauge-squeezing"].get("keep_firing_for") == (
        "1h" if there.major >= 12 else None
    )


def test_a_rule_that_changed_here_is_changed_and_its_group_written_once(
    site: Site, there: Double
) -> None:
    site.apply(WANTED)
    there.asked.clear()
    later = replace(WANTED, alerts=lambda uid: groups(uid, wait="5m"))
    assert site.apply(later).count(("changed", "ForceGaugeSqueezing")) == 1
    assert [method for method, _ in there.written] == ["PUT"]
    assert there.rules["forcegauge-squeezing"]["for"] == "5m"


def test_one_minute_is_sixty_seconds(site: Site, there: Double) -> None:
    site.apply(replace(WANTED, alerts=lambda uid: groups(uid, wait="60s")))
    assert states(site.apply(replace(WANTED, alerts=lambda uid: groups(uid, wait="1m")))) == {
        "same"
    }


def test_a_label_that_is_not_ours_any_more_goes(site: Site, there: Double) -> None:
    site.apply(WANTED)
    there.rules["forcegauge-squeezing"]["labels"]["old"] = "yes"
    assert ("changed", "ForceGaugeSqueezing") in site.apply(WANTED)
    assert there.rules["forcegauge-squeezing"]["labels"] == {"severity": "warning"}


def test_another_interval_is_a_change(site: Site, there: Double) -> None:
    site.apply(WANTED)
    there.intervals[FOLDER, "forcegauge.runs"] = 60
    assert ("changed", "forcegauge.runs") in site.apply(WANTED)
    assert there.intervals[FOLDER, "forcegauge.runs"] == 30


def test_a_rule_of_others_in_our_group_stays_as_it_is(site: Site, there: Double) -> None:
    site.apply(WANTED)
    theirs = {**there.rules["forcegauge-squeezing"], "uid": "theirs", "title": "Theirs"}
    del theirs["provenance"]
    there.rules["theirs"] = dict(theirs)
    site.apply(replace(WANTED, alerts=lambda uid: groups(uid, wait="5m")))
    assert there.rules["theirs"] == theirs
    assert ("kept", FOLDER) in site.remove(WANTED)
    assert list(there.rules) == ["theirs"]


@pytest.mark.parametrize("provenance", ["", "file"])
def test_a_rule_whose_provenance_is_not_ours_is_kept_and_the_others_are_written(
    site: Site, there: Double, provenance: str
) -> None:
    site.apply(WANTED)
    there.rules["forcegauge-squeezing"] |= {"provenance": provenance, "for": "9m"}
    changes = site.apply(replace(WANTED, alerts=lambda uid: groups(uid, wait="5m")))
    assert ("kept", "ForceGaugeSqueezing") in changes
    assert there.rules["forcegauge-squeezing"]["for"] == "9m"
    assert there.rules["forcegauge-diverging"]["for"] == "5m"
    assert ("kept", "ForceGaugeSqueezing") in site.remove(WANTED)


def test_overwrite_takes_an_editable_rule_back(site: Site, there: Double) -> None:
    site.apply(WANTED)
    there.rules["forcegauge-squeezing"] |= {"provenance": "", "for": "9m"}
    site.apply(replace(WANTED, overwrite=True))
    assert there.rules["forcegauge-squeezing"]["for"] == "2m"


def test_a_rule_that_is_no_longer_in_the_table_is_removed(site: Site, there: Double) -> None:
    site.apply(WANTED)

    def fewer(datasource: str) -> list[dict[str, Any]]:
        [group] = groups(datasource)
        return [{**group, "rules": group["rules"][:1]}]

    assert ("removed", "ForceGaugeDiverging") in site.apply(replace(WANTED, alerts=fewer))
    assert list(there.rules) == ["forcegauge-squeezing"]


def test_our_route_is_put_before_the_others_and_takes_nothing_from_them(
    site: Site, there: Double
) -> None:
    there.policies = {**there.policies, "group_wait": "10s", "routes": [THEIRS]}
    site.apply(WANTED)
    ours, theirs = there.policies["routes"]
    assert (ours["receiver"], ours["continue"]) == ("forcegauge", True)
    assert theirs == THEIRS
    assert there.policies["group_wait"] == "10s"


@pytest.mark.parametrize("provenance", ["", "api"])
def test_the_shared_tree_stays_as_editable_as_it_was(
    site: Site, there: Double, provenance: str
) -> None:
    there.policies["provenance"] = provenance
    site.apply(WANTED)
    assert there.policies.get("provenance", "") == provenance
    site.remove(WANTED)
    assert there.policies.get("provenance", "") == provenance


def test_a_tree_from_a_file_is_left_alone(site: Site, there: Double) -> None:
    there.policies["provenance"] = "file"
    before = dict(there.policies)
    assert site.apply(WANTED)[-1] == ("kept", "forcegauge")
    assert there.policies == before


def test_what_somebody_made_of_our_route_stays(site: Site, there: Double) -> None:
    site.apply(WANTED)
    there.policies["routes"] = [THEIRS, {**there.policies["routes"][0], "group_wait": "5m"}]
    before = dict(there.policies)
    assert states(site.apply(WANTED)) == {"same"}
    assert there.policies == before


def test_a_route_of_ours_inside_another_one_is_known_and_removed(site: Site, there: Double) -> None:
    site.apply(WANTED)
    there.policies["routes"] = [{**THEIRS, "routes": there.policies["routes"]}]
    assert states(site.apply(WANTED)) == {"same"}
    site.remove(WANTED)
    assert there.policies["routes"] == [{**THEIRS, "routes": []}]
    assert there.contacts == {}


def test_a_paused_rule_stays_paused(site: Site, there: Double) -> None:
    site.apply(WANTED)
    there.rules["forcegauge-squeezing"]["isPaused"] = True
    site.apply(replace(WANTED, alerts=lambda uid: groups(uid, wait="5m")))
    assert there.rules["forcegauge-squeezing"]["isPaused"] is True
    assert there.rules["forcegauge-diverging"]["isPaused"] is False


def test_another_webhook_is_a_change_that_does_not_tell_its_url(site: Site, there: Double) -> None:
    site.apply(WANTED)
    later = replace(WANTED, webhook="https://hooks.example/another-secret")
    steps = [look() for look in applying(site.grafana, later)]
    assert "secret" not in repr([change for step in steps for change in step.changes])
    assert ("changed", "forcegauge") in site.apply(later)
    assert there.contacts["forcegauge-webhook"]["settings"]["url"] == later.webhook


def test_a_contact_point_whose_url_grafana_keeps_secret_is_not_changed_each_time(
    site: Site, there: Double
) -> None:
    site.apply(WANTED)
    there.contacts["forcegauge-webhook"]["settings"]["url"] = "[REDACTED]"
    assert states(site.apply(WANTED)) == {"same"}


def test_remove_leaves_the_routes_and_contact_points_of_others(site: Site, there: Double) -> None:
    there.contacts["theirs"] = {"uid": "theirs", "name": "Theirs"}
    there.policies["routes"] = [THEIRS, {"receiver": "Theirs"}]
    before = (dict(there.contacts), dict(there.policies))
    site.apply(WANTED)
    assert states(site.remove(WANTED)) == {"removed"}
    assert (there.contacts, there.policies) == before
    assert (there.rules, there.dashboards, there.folders, there.sources) == ({}, {}, {}, {})


@pytest.mark.parametrize("fault", ["drop", "lose"])
def test_killed_anywhere_and_called_again_ends_as_undisturbed(fault: str) -> None:
    with grafana_double() as (double, url), Grafana(url, TOKEN, pauses=()) as grafana:
        Site(grafana).apply(WANTED)
        right, requests = double.state(), len(double.asked)
        double.asked.clear()
        Site(grafana).remove(WANTED)
        removals = len(double.asked)
    for number in range(requests):
        with grafana_double() as (double, url), Grafana(url, TOKEN, pauses=()) as grafana:
            double.faults = [*["pass"] * number, fault]
            with pytest.raises(AwayError):
                Site(grafana).apply(WANTED)
            Site(grafana).apply(WANTED)
            assert double.state() == right, number
    for number in range(removals):
        with grafana_double() as (double, url), Grafana(url, TOKEN, pauses=()) as grafana:
            Site(grafana).apply(WANTED)
            double.faults = [*["pass"] * number, fault]
            with pytest.raises(AwayError):
                Site(grafana).remove(WANTED)
            Site(grafana).remove(WANTED)
            assert (double.rules, double.folders, double.contacts) == ({}, {}, {}), number


def test_a_lost_answer_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grafana_http, "PAUSES", (0.0,))
    with grafana_double() as (double, url), Grafana(url, TOKEN) as grafana:
        Site(grafana).apply(WANTED)
        requests = len(double.asked)
    for number in range(requests):
        with grafana_double() as (double, url), Grafana(url, TOKEN) as grafana:
            double.faults = [*["pass"] * number, "lose"]
            Site(grafana).apply(WANTED)
            assert states(Site(grafana).apply(WANTED)) == {"same"}, number


def test_what_grafana_refuses_is_not_hidden(site: Site, there: Double) -> None:
    site.apply(replace(WANTED, alerts=None, webhook=""))
    there.folders.clear()
    group, *_ = grafana_alerting.applying(site.grafana, Wanted([], datasource="x", alerts=groups))
    with pytest.raises(RefusedError, match="folder does not exist"):
        settled(group)


@pytest.mark.parametrize(
    ("sources", "chosen"),
    [
        (["a"], "a"),
        (["a", "forcegauge-prometheus"], "forcegauge-prometheus"),
        (["a", "b*"], "b"),
    ],
)
def test_without_being_told_rules_ask_the_only_our_own_or_the_default_prometheus(
    site: Site, there: Double, sources: list[str], chosen: str
) -> None:
    for name in sources:
        uid = name.rstrip("*")
        facts = {"uid": uid, "name": uid, "type": "prometheus", "isDefault": name != uid}
        there.sources[uid] = facts
    site.apply(Wanted(BOARDS, alerts=groups))
    assert there.rules["forcegauge-squeezing"]["data"][0]["datasourceUid"] == chosen


def test_of_several_data_sources_none_is_guessed(site: Site, there: Double) -> None:
    for uid in ("a", "b"):
        there.sources[uid] = {"uid": uid, "name": uid.upper(), "type": "prometheus"}
    with pytest.raises(InputError, match=r"--datasource UID.*a \(A\), b \(B\)"):
        site.apply(Wanted(BOARDS, alerts=groups))


def test_the_rules_of_the_table_are_made_once(site: Site, there: Double) -> None:
    wanted = replace(WANTED, alerts=lambda uid: grafana_groups(datasource=uid))
    made = [name for state, name in site.apply(wanted) if name.startswith("ForceGauge")]
    assert len(made) == len(set(made)) == sum(len(group["rules"]) for group in grafana_groups())
    assert states(site.apply(wanted)) == {"same"}
