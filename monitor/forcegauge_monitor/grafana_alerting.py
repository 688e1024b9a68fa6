"""Our alert rules, contact point and notification policy in a Grafana.

The policies are one tree that all who use a Grafana share: only our route is put into it or taken
out. Grafana writes the tree as a whole and knows no version of it, so what somebody saves between
our reading and our writing, a few milliseconds, is lost.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from forcegauge.errors import InputError
from forcegauge_monitor.differences import differences, pruned
from forcegauge_monitor.grafana_http import Grafana
from forcegauge_monitor.grafana_steps import (
    DATASOURCE,
    FOLDER,
    Change,
    Json,
    Look,
    State,
    Step,
    Wanted,
    one,
)

CONTACT = "forcegauge"
CONTACT_UID = "forcegauge-webhook"
RULE_PREFIX = "forcegauge-"

ROUTE: Json = {
    "receiver": CONTACT,
    "object_matchers": [["alertname", "=~", "ForceGauge.+"]],
    "group_by": ["alertname", "run"],
    # what others route by severity or team still goes there too
    "continue": True,
}

API, FILE = "api", "file"
"""Provenance: written over HTTP without more, and read from a file."""

EDITABLE = {"X-Disable-Provenance": "true"}
"""With this header the written object stays editable in Grafana's pages."""

_RULES, _CONTACTS, _POLICIES = (
    f"/v1/provisioning/{name}" for name in ("alert-rules", "contact-points", "policies")
)
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_REDACTED = "[REDACTED]"
_OTHERS = ("isPaused", "notification_settings")
"""What somebody may set for a rule of ours, and keeps."""


def applying(grafana: Grafana, wanted: Wanted) -> Iterator[Look]:
    """The alerting part of what is wanted, in the order in which it is to be made."""
    if wanted.alerts is not None:
        groups = [_group(group) for group in wanted.alerts(_source(grafana, wanted))]
        for group in groups:
            yield partial(_rules, grafana, group, wanted.overwrite)
        yield partial(_left, grafana, {rule["uid"] for each in groups for rule in each["rules"]})
    if wanted.webhook:
        yield partial(_contact, grafana, wanted.webhook, wanted.overwrite)
        yield partial(_route, grafana)


def removing(grafana: Grafana) -> Iterator[Look]:
    """What is to be taken away of it: what refers to others before what is referred to."""
    yield partial(_without_route, grafana)
    yield partial(_without_contact, grafana)
    yield partial(_left, grafana, ())


def others_rules(grafana: Grafana) -> list[str]:
    """Titles of the alert rules in our folder that are not ours."""
    return [rule["title"] for rule in _in_folder(grafana) if not _is_our_rule(rule)]


def _source(grafana: Grafana, wanted: Wanted) -> str:
    """uid of the data source that the rules ask."""
    if wanted.datasource or wanted.prometheus:
        return wanted.datasource or DATASOURCE
    known = grafana.call("GET", "/datasources")
    found = [each for each in known if each["type"] == "prometheus"]
    ours = [each for each in found if each["uid"] == DATASOURCE]
    default = [each for each in found if each.get("isDefault")]
    for choice in (ours, default, found):
        if len(choice) == 1:
            return str(choice[0]["uid"])
    names = ", ".join(f"{each['uid']} ({each['name']})" for each in found) or "none"
    fix = f"Give --datasource UID or --prometheus URL. Prometheus data sources there: {names}"
    raise InputError("which data source alert rules ask is not known", field="--alerts", fix=fix)


def _group(group: Json) -> Json:
    """A group of a provisioning file as the HTTP API takes it."""
    rules = [_rule(rule, group["name"]) for rule in group["rules"]]
    interval = int(_seconds(group["interval"]))
    return {"title": group["name"], "folderUid": FOLDER, "interval": interval, "rules": rules}


def _rule(rule: Json, group: str) -> Json:
    made = {**rule, "folderUID": FOLDER, "ruleGroup": group}
    if "keepFiringFor" in made:
        made["keep_firing_for"] = made.pop("keepFiringFor")
    return made


def _rules(grafana: Grafana, group: Json, overwrite: bool) -> Step:
    """One request writes a group, whole or not at all, with others' rules in it as they are."""
    path = f"/v1/provisioning/folder/{FOLDER}/rule-groups/{group['title']}"
    live = grafana.find(path) or {"interval": group["interval"], "rules": []}
    known = {rule["uid"]: rule for rule in live["rules"]}
    changes = [_compared(known.pop(rule["uid"], None), rule, overwrite) for rule in group["rules"]]
    timed = live["interval"] == group["interval"]
    if not timed:
        lines = differences({"interval": live["interval"]}, {"interval": group["interval"]})
        changes.append(Change("changed", "rule group", group["title"], lines))
    if all(change.state in ("same", "kept") for change in changes):
        return Step(changes)
    body = {**group, "rules": [*_written(group, changes, live["rules"]), *known.values()]}
    return Step(changes, lambda: grafana.call("PUT", path, body))


def _written(group: Json, changes: Sequence[Change], live: Sequence[Json]) -> Iterator[Json]:
    """The group's rules, those that are kept as they are, and paused ones paused."""
    known = {rule["uid"]: rule for rule in live}
    for rule, change in zip(group["rules"], changes, strict=False):
        before = known.get(rule["uid"], {})
        others = {name: before[name] for name in _OTHERS if name in before}
        yield before if change.state == "kept" else {**rule, **others}


def _compared(live: Json | None, rule: Json, overwrite: bool) -> Change:
    name = rule["title"]
    if live is None:
        return Change("created", "alert rule", name)
    # labels and annotations that are not ours any more must go, what Grafana adds elsewhere stays
    whole = {name: live.get(name) or {} for name in ("labels", "annotations")}
    now = _canonical(pruned(live, rule) | whole)
    # a Grafana before 12 drops keep_firing_for
    wished = _canonical({k: v for k, v in rule.items() if k in live or k != "keep_firing_for"})
    if now == wished:
        return Change("same", "alert rule", name)
    state, note = _mine(live, overwrite)
    return Change(state, "alert rule", name, differences(now, wished), note)


def _mine(live: Json, overwrite: bool) -> tuple[State, str]:
    """Whether an object may be written, by its provenance; and why not."""
    provenance = live.get("provenance", "")
    if provenance == API or (overwrite and provenance != FILE):
        return "changed", ""
    if provenance == FILE:
        return "kept", "Grafana reads it from a file"
    return "kept", "somebody made it editable in Grafana; --overwrite replaces it"


def _canonical(rule: Json) -> Json:
    """Durations as Grafana writes them: 1m is 60s."""
    times: Json = {
        name: f"{_seconds(rule[name]):g}s" for name in ("for", "keep_firing_for") if name in rule
    }
    return {"labels": {}, "annotations": {}, **rule, **times}


def _seconds(duration: str | int) -> float:
    parts = re.findall(r"(\d+)(ms|[smhdw])", str(duration))
    return sum(int(number) * _SECONDS[unit] for number, unit in parts)


def _in_folder(grafana: Grafana) -> list[Json]:
    return [rule for rule in grafana.call("GET", _RULES) if rule.get("folderUID") == FOLDER]


def _is_our_rule(rule: Json) -> bool:
    named = str(rule["uid"]).startswith(RULE_PREFIX)
    return named and bool(rule.get("provenance", "") == API)


def _left(grafana: Grafana, wanted: Sequence[str] | set[str]) -> Step:
    """Rules of ours that are not wanted any more."""
    found = [rule for rule in _in_folder(grafana) if rule["uid"] not in wanted]
    mine = [rule for rule in found if _is_our_rule(rule)]
    named = [rule for rule in found if rule["uid"].startswith(RULE_PREFIX)]
    changes = [_to_go(rule, rule in mine) for rule in named]
    return Step(changes, partial(_delete_rules, grafana, mine) if mine else None)


def _to_go(rule: Json, mine: bool) -> Change:
    note = "" if mine else "its provenance is not ours"
    return Change("removed" if mine else "kept", "alert rule", rule["title"], note=note)


def _delete_rules(grafana: Grafana, rules: Sequence[Json]) -> None:
    for rule in rules:
        grafana.drop(f"{_RULES}/{rule['uid']}")


def _contact(grafana: Grafana, url: str, overwrite: bool) -> Step:
    settings = {"url": url, "httpMethod": "POST"}
    body = {"uid": CONTACT_UID, "name": CONTACT, "type": "webhook", "settings": settings}
    live = _our_contact(grafana)
    if live is None:
        write = partial(grafana.call, "POST", _CONTACTS, body)
        return one("created", "contact point", CONTACT, write=write)
    now = pruned(live, body)
    if now.get("settings", {}).get("url") == _REDACTED:
        # a Grafana that keeps it secret cannot be compared with
        now["settings"]["url"] = url
    if now == body:
        return one("same", "contact point", CONTACT)
    state, note = _mine(live, overwrite)
    # a webhook's URL often holds a secret
    changed = Change(state, "contact point", CONTACT, ["-settings: ...", "+settings: ..."], note)
    if state == "kept":
        return Step([changed])
    return Step([changed], partial(grafana.call, "PUT", f"{_CONTACTS}/{CONTACT_UID}", body))


def _our_contact(grafana: Grafana) -> Json | None:
    known: list[Json] = grafana.call("GET", _CONTACTS)
    return next((each for each in known if each.get("uid") == CONTACT_UID), None)


def _route(grafana: Grafana) -> Step:
    tree = grafana.call("GET", _POLICIES)
    routes = tree.get("routes") or []
    # whatever somebody made of our route, or wherever they put it, stays
    if _without(routes) != routes:
        return one("same", "notification policy", CONTACT)
    if kept := _tree_kept(tree):
        return one("kept", "notification policy", CONTACT, note=kept)
    write = partial(_put_tree, grafana, tree, [ROUTE, *routes])
    return one("created", "notification policy", CONTACT, write=write)


def _without_route(grafana: Grafana) -> Step:
    tree = grafana.call("GET", _POLICIES)
    routes = tree.get("routes") or []
    others = _without(routes)
    if others == routes:
        return Step(())
    if kept := _tree_kept(tree):
        return one("kept", "notification policy", CONTACT, note=kept)
    write = partial(_put_tree, grafana, tree, others)
    return one("removed", "notification policy", CONTACT, write=write)


def _without_contact(grafana: Grafana) -> Step:
    live = _our_contact(grafana)
    if live is None:
        return Step(())
    if live.get("provenance", "") != API:
        note = "its provenance is not ours"
        return one("kept", "contact point", CONTACT, note=note)
    write = partial(grafana.drop, f"{_CONTACTS}/{CONTACT_UID}")
    return one("removed", "contact point", CONTACT, write=write)


def _without(routes: Sequence[Json]) -> list[Json]:
    """The routes without ours, wherever it lies."""
    return [
        {**route, "routes": _without(route["routes"])} if route.get("routes") else route
        for route in routes
        if route.get("receiver") != CONTACT
    ]


def _tree_kept(tree: Json) -> str:
    return "Grafana reads the policies from a file" if tree.get("provenance") == FILE else ""


def _put_tree(grafana: Grafana, tree: Json, routes: Sequence[Json]) -> Any:
    """Write the tree with these routes, as editable in Grafana's pages as it was."""
    body = {key: value for key, value in tree.items() if key != "provenance"} | {"routes": routes}
    headers = None if tree.get("provenance") else EDITABLE
    return grafana.call("PUT", _POLICIES, body, headers)
