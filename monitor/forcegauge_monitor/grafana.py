"""Folder, dashboards, data source and alerting of forcegauge in a Grafana: shown, made, removed.

Grafana is the only memory. A dashboard that we saved has our mark as the message of its last
version, so that one which somebody changed since is known, and kept. Alert rules and the contact
point have the provenance ``api``, with which Grafana's own pages do not let them be edited.

Relies on Grafana's HTTP API under ``/api`` as documented for 10 to 13, where it is old but stays:
``folders``, ``dashboards/db``, ``dashboards/uid/:uid``, ``datasources/uid/:uid``, ``search``,
``library-elements``, ``v1/provisioning``. What differs: versions of a dashboard are a list until 11
and in an object since; before 12 an alert rule has no ``keep_firing_for``; since 12 a dashboard
that was saved in the newer format answers 406.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import partial
from importlib.resources import files
from typing import Any

from forcegauge_monitor import grafana_alerting as alerting
from forcegauge_monitor.differences import differences
from forcegauge_monitor.grafana_http import Grafana, RefusedError
from forcegauge_monitor.grafana_steps import DATASOURCE, FOLDER, Json, Look, Step, Wanted, one

TAG = "forcegauge"
MARK = "forcegauge "
"""How the message of a version begins that we saved; the hash of what we saved follows."""

NOT_ACCEPTABLE = 406


def shipped_dashboards() -> list[Json]:
    """The dashboards that come with forcegauge."""
    folder = files("forcegauge_monitor") / "data" / "dashboards"
    found = sorted(folder.iterdir(), key=lambda file: file.name) if folder.is_dir() else []
    return [json.loads(file.read_text(encoding="utf-8")) for file in found]


def applying(grafana: Grafana, wanted: Wanted) -> Iterator[Look]:
    """What is looked at, in the order in which it is to be made."""
    yield partial(_folder, grafana)
    if wanted.prometheus:
        yield partial(_datasource, grafana, wanted.prometheus, wanted.overwrite)
    for board in wanted.dashboards:
        yield partial(_dashboard, grafana, board, wanted.overwrite)
    yield from alerting.applying(grafana, wanted)


def removing(grafana: Grafana, wanted: Wanted) -> Iterator[Look]:
    """What is looked at to remove all that is ours, the folder last and only if it is empty."""
    gone: set[str] = set()
    yield from alerting.removing(grafana)
    for board in wanted.dashboards:
        yield partial(_without_dashboard, grafana, board["uid"], wanted.overwrite, gone)
    yield partial(_without_datasource, grafana, wanted.overwrite)
    yield partial(_without_folder, grafana, gone)


def mark(board: Json) -> str:
    """The message of the version that saves this dashboard."""
    return MARK + hashlib.sha256(json.dumps(board, sort_keys=True).encode()).hexdigest()[:16]


def _folder(grafana: Grafana) -> Step:
    if grafana.find(f"/folders/{FOLDER}") is not None:
        # another title is somebody's wish
        return one("same", "folder", FOLDER)
    body = {"uid": FOLDER, "title": "forcegauge"}
    return one("created", "folder", FOLDER, write=lambda: grafana.call("POST", "/folders", body))


def _dashboard(grafana: Grafana, board: Json, overwrite: bool) -> Step:
    uid = board["uid"]
    show = partial(one, kind="dashboard", name=uid)
    live = _live(grafana, uid)
    if live is None:
        return show("created", write=partial(_save, grafana, board, FOLDER, 0))
    now, meta = live["dashboard"], live["meta"]
    last = _last_version(grafana, uid)
    if last.get("message") == mark(board) or _plain(now) == _plain(board):
        return show("same")
    lines = differences(_plain(now), _plain(board))
    kept = _why_kept(now, meta, last, overwrite)
    if kept:
        return show("kept", lines=lines, note=kept)
    place, version = meta.get("folderUid", ""), now.get("version")
    return show("changed", lines=lines, write=partial(_save, grafana, board, place, version))


def _live(grafana: Grafana, uid: str) -> Json | None:
    try:
        found: Json | None = grafana.find(f"/dashboards/uid/{uid}")
    except RefusedError as error:
        if error.status != NOT_ACCEPTABLE:
            raise
        # saved in a format that this endpoint does not speak, which we never do
        found = {"dashboard": {"tags": [TAG]}, "meta": {"folderUid": FOLDER}}
    return found


def _why_kept(now: Json, meta: Json, last: Json, overwrite: bool) -> str:
    """Why a dashboard is not ours to write or remove; empty where it is."""
    if meta.get("provisioned"):
        return "Grafana reads it from a file"
    if TAG not in (now.get("tags") or ()):
        return f"it does not have the tag {TAG}: somebody else's"
    if overwrite or str(last.get("message") or "").startswith(MARK):
        return ""
    return f"{last.get('createdBy') or 'somebody'} changed it in Grafana; --overwrite replaces it"


def _save(grafana: Grafana, board: Json, place: str, version: int | None) -> Any:
    """Save over the version that was looked at, and no later one where it is known."""
    body = {
        "dashboard": {**board, "id": None, "version": version or 0},
        "folderUid": place,
        "message": mark(board),
        "overwrite": version is None,
    }
    return grafana.call("POST", "/dashboards/db", body)


def _last_version(grafana: Grafana, uid: str) -> Json:
    found = grafana.call("GET", f"/dashboards/uid/{uid}/versions?limit=1")
    rows = found["versions"] if isinstance(found, dict) else found
    newest: Json = max(rows, key=lambda row: int(row["version"]), default={})
    return newest


def _plain(board: Json) -> Json:
    return {key: value for key, value in board.items() if key not in ("id", "version")}


def _datasource(grafana: Grafana, url: str, overwrite: bool) -> Step:
    show = partial(one, kind="data source", name=DATASOURCE)
    live = grafana.find(f"/datasources/uid/{DATASOURCE}")
    # the note is how a URL that somebody changed since is known
    ours = {"url": url, "jsonData": {"httpMethod": "POST", "forcegaugeUrl": url}}
    if live is None:
        named = {"uid": DATASOURCE, "name": "forcegauge Prometheus", "type": "prometheus"}
        made = {**named, "access": "proxy", **ours}
        return show("created", write=lambda: grafana.call("POST", "/datasources", made))
    if live.get("url") == url:
        return show("same")
    lines = differences({"url": live.get("url")}, {"url": url})
    if kept := _datasource_kept(live, overwrite):
        return show("kept", lines=lines, note=kept)
    data = {**(live.get("jsonData") or {}), "forcegaugeUrl": url}
    body = {**live, "url": url, "jsonData": data}
    path = f"/datasources/uid/{DATASOURCE}"
    return show("changed", lines=lines, write=lambda: grafana.call("PUT", path, body))


def _datasource_kept(live: Json, overwrite: bool) -> str:
    if live.get("readOnly"):
        return "Grafana reads it from a file"
    if overwrite or live.get("url") == (live.get("jsonData") or {}).get("forcegaugeUrl"):
        return ""
    return "somebody changed its URL in Grafana; --overwrite replaces it"


def _without_dashboard(grafana: Grafana, uid: str, overwrite: bool, gone: set[str]) -> Step:
    live = _live(grafana, uid)
    if live is None:
        return Step(())
    last = _last_version(grafana, uid)
    if kept := _why_kept(live["dashboard"], live["meta"], last, overwrite):
        return one("kept", "dashboard", uid, note=kept.replace("replaces", "removes"))
    gone.add(uid)
    path = f"/dashboards/uid/{uid}"
    return one("removed", "dashboard", uid, write=partial(grafana.drop, path))


def _without_datasource(grafana: Grafana, overwrite: bool) -> Step:
    path = f"/datasources/uid/{DATASOURCE}"
    live = grafana.find(path)
    if live is None:
        return Step(())
    if kept := _datasource_kept(live, overwrite):
        return one("kept", "data source", DATASOURCE, note=kept.replace("replaces", "removes"))
    return one("removed", "data source", DATASOURCE, write=partial(grafana.drop, path))


def _without_folder(grafana: Grafana, gone: set[str]) -> Step:
    """Grafana deletes a folder with all that lies in it, so that it must be empty before."""
    if grafana.find(f"/folders/{FOLDER}") is None:
        return Step(())
    hits = grafana.call("GET", f"/search?folderUIDs={FOLDER}&limit=1000")
    panels = grafana.call("GET", "/library-elements?perPage=500")["result"]["elements"]
    # 10.0 finds more than it was asked for
    here = [each for each in hits if each.get("folderUid") == FOLDER]
    names = [each["title"] for each in here if each["uid"] not in gone]
    names += [each["name"] for each in panels if each.get("folderUid") == FOLDER]
    names += alerting.others_rules(grafana)
    if names:
        return one("kept", "folder", FOLDER, note=f"it holds {', '.join(sorted(names)[:3])}")
    path = f"/folders/{FOLDER}"
    return one("removed", "folder", FOLDER, write=partial(grafana.drop, path))
