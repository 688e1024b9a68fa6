"""A stand-in for a Grafana that keeps state as one does; `grafana_served` gives it a server.

Follows Grafana's own documentation of its HTTP API (developers/http_api: folder, dashboard,
dashboard_versions, data_source, folder_dashboard_search, library_element, annotations, other, and
alerting_provisioning, of versions 10 to 13) and, where that leaves a status open, the handlers in
its pkg/services/ngalert/api/api_provisioning.go. What it was not held against is a real Grafana:
`test_grafana.py` runs the same tests there where `FORCEGAUGE_TEST_GRAFANA_URL` names one.

As in Grafana: saving a dashboard makes a version and needs the number of the last one (412), its
message stays in the history, whose list is wrapped in an object since 11; a folder that is deleted
takes what lies in it along; a rule group is replaced as a whole; what is written over provisioning
gets the provenance api unless `X-Disable-Provenance` is there, and what has one keeps others out
(409); a contact point that a route names cannot be deleted; a rule's DELETE answers 204; before 12
a rule has no keep_firing_for; annotations are found by all their tags and by time.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

Json = dict[str, Any]
Answer = tuple[int, Any]
TOKEN = "glsa_the-secret-token"
READER = "glsa_another-secret"
V1 = "/v1/provisioning"


def _ok(message: str, /, **more: Any) -> Answer:
    return 200, {"message": message, **more}


def no(status: int, message: str, /, **more: Any) -> Answer:
    """A refusal, with Grafana's form of a body."""
    return status, {"message": message, **more}


class Double:
    """The state, and what is to go wrong.

    ``faults`` are taken one by one by the next requests: a status to answer, ``drop`` (the
    connection, before anything is done), ``lose`` (the answer, after it is done), ``page`` (HTML),
    ``hang`` or ``pass``.
    """

    def __init__(self, version: str) -> None:
        self.version = version
        self.major = int(version.partition(".")[0])
        self.folders: dict[str, Json] = {}
        self.dashboards: dict[str, Json] = {}
        self.history: dict[str, list[Json]] = {}
        self.sources: dict[str, Json] = {}
        self.rules: dict[str, Json] = {}
        self.intervals: dict[tuple[str, str], int] = {}
        self.contacts: dict[str, Json] = {}
        self.policies: Json = {"receiver": "grafana-default-email", "routes": []}
        self.panels: list[Json] = []
        self.annotations: list[Json] = []
        self.faults: list[int | str] = []
        self.asked: list[tuple[str, str]] = []
        self.lock = threading.RLock()
        self.released = threading.Event()

    @property
    def written(self) -> list[tuple[str, str]]:
        """Method and path of every request that may change something."""
        return [each for each in self.asked if each[0] != "GET"]

    def state(self) -> str:
        """All there is, but for what differs from one making to the next."""
        kept = [self.folders, self.dashboards, self.sources, self.rules, self.intervals.values()]
        text = json.dumps([*map(list, kept[:-1]), list(kept[-1])])
        things = [self.folders, self.sources, self.rules, self.contacts, self.policies]
        boards = {uid: each["dashboard"] | {"version": 0} for uid, each in self.dashboards.items()}
        return text + json.dumps([things, boards], sort_keys=True)

    def edit(self, uid: str, by: str = "ada", **fields: Any) -> None:
        """Somebody saves a dashboard in Grafana's own pages."""
        board = {**self.dashboards[uid]["dashboard"], **fields}
        self._save(board, self.dashboards[uid]["folder"], "", by)

    # what it answers, by path

    def health(self, body: Any, query: Json) -> Answer:
        return 200, {"database": "ok", "version": self.version, "commit": "abc"}

    def get_folder(self, body: Any, query: Json, uid: str) -> Answer:
        found = self.folders.get(uid)
        return (200, found) if found else no(404, "folder not found", status="not-found")

    def post_folder(self, body: Json, query: Json) -> Answer:
        if body["uid"] in self.folders:
            status = 409 if self.major >= 12 else 412
            return no(status, "a folder with that uid already exists")
        self.folders[body["uid"]] = {**body, "id": len(self.folders) + 1, "version": 1}
        return 200, self.folders[body["uid"]]

    def delete_folder(self, body: Any, query: Json, uid: str) -> Answer:
        if any(rule["folderUID"] == uid for rule in self.rules.values()):
            return no(400, "folder cannot be deleted: folder is not empty")
        if self.folders.pop(uid, None) is None:
            return no(404, "folder not found")
        for board in [key for key, each in self.dashboards.items() if each["folder"] == uid]:
            del self.dashboards[board]
        return _ok("Folder deleted", id=1)

    def get_dashboard(self, body: Any, query: Json, uid: str) -> Answer:
        found = self.dashboards.get(uid)
        if found is None:
            return no(404, "Dashboard not found", status="not-found")
        if found.get("v2"):
            return no(406, "dashboard api version not supported, use /apis/... instead")
        meta = {"folderUid": found["folder"], "provisioned": bool(found.get("provisioned"))}
        return 200, {"dashboard": found["dashboard"], "meta": meta}

    def post_dashboard(self, body: Json, query: Json) -> Answer:
        board = body["dashboard"]
        old = self.dashboards.get(board["uid"])
        if old is not None and old.get("provisioned"):
            return no(400, "Cannot save provisioned dashboard")
        stale = old is not None and board["version"] != old["dashboard"]["version"]
        if stale and not body.get("overwrite"):
            message = "The dashboard has been changed by someone else"
            return no(412, message, status="version-mismatch")
        if body.get("folderUid") and body["folderUid"] not in self.folders:
            return no(404, "folder not found")
        return self._save(
            board, body.get("folderUid", ""), body.get("message", ""), "sa-forcegauge"
        )

    def _save(self, board: Json, folder: str, message: str, by: str) -> Answer:
        uid = board["uid"]
        history = self.history.setdefault(uid, [])
        version = len(history) + 1
        history.append({"id": version, "version": version, "createdBy": by, "message": message})
        saved = {**board, "id": 7, "version": version}
        self.dashboards[uid] = {"dashboard": saved, "folder": folder}
        return 200, {"uid": uid, "status": "success", "version": version, "id": 7}

    def versions(self, body: Any, query: Json, uid: str) -> Answer:
        if uid not in self.dashboards:
            return no(404, "Dashboard not found")
        rows = self.history[uid][::-1][: int(query["limit"][0])]
        return 200, {"continueToken": "", "versions": rows} if self.major >= 11 else rows

    def delete_dashboard(self, body: Any, query: Json, uid: str) -> Answer:
        if self.dashboards.get(uid, {}).get("provisioned"):
            return no(400, "provisioned dashboard cannot be deleted")
        if self.dashboards.pop(uid, None) is None:
            return no(404, "Dashboard not found")
        return _ok(f"Dashboard {uid} deleted", title=uid)

    def search(self, body: Any, query: Json) -> Answer:
        return 200, [
            {"uid": uid, "title": each["dashboard"]["title"], "folderUid": each["folder"]}
            for uid, each in self.dashboards.items()
            if self.major < 11 or each["folder"] in query["folderUIDs"]
        ]

    def library(self, body: Any, query: Json) -> Answer:
        return 200, {"result": {"totalCount": len(self.panels), "elements": self.panels}}

    def get_sources(self, body: Any, query: Json) -> Answer:
        return 200, list(self.sources.values())

    def get_source(self, body: Any, query: Json, uid: str) -> Answer:
        found = self.sources.get(uid)
        return (200, found) if found else no(404, "Data source not found")

    def post_source(self, body: Json, query: Json) -> Answer:
        if any(body["name"] == each["name"] for each in self.sources.values()):
            return no(409, "data source with the same name already exists")
        self.sources[body["uid"]] = {**body, "id": len(self.sources) + 1, "version": 1}
        return _ok("Datasource added", datasource=self.sources[body["uid"]])

    def put_source(self, body: Json, query: Json, uid: str) -> Answer:
        old = self.sources[uid]
        if old.get("readOnly"):
            return no(403, "Cannot update read-only data source")
        if body.get("version") not in (None, old["version"]):
            return no(409, "Datasource has already been updated by someone else. Please reload")
        self.sources[uid] = {**body, "version": old["version"] + 1}
        return _ok("Datasource updated")

    def delete_source(self, body: Any, query: Json, uid: str) -> Answer:
        if self.sources.pop(uid, None) is None:
            return no(404, "Data source not found")
        return _ok("Data source deleted")

    def get_rules(self, body: Any, query: Json) -> Answer:
        return 200, list(self.rules.values())

    def delete_rule(self, body: Any, query: Json, uid: str, provenance: str) -> Answer:
        if self.rules.get(uid, {}).get("provenance", "") not in ("", provenance):
            return no(409, "cannot delete with provided provenance")
        self.rules.pop(uid, None)
        return 204, None

    def get_group(self, body: Any, query: Json, folder: str, group: str) -> Answer:
        rules = self._group(folder, group)
        if not rules:
            return no(404, "rule group not found")
        interval = self.intervals[folder, group]
        return 200, {"title": group, "folderUid": folder, "interval": interval, "rules": rules}

    def _group(self, folder: str, group: str) -> list[Json]:
        rules = self.rules.values()
        return [each for each in rules if (each["folderUID"], each["ruleGroup"]) == (folder, group)]

    def put_group(
        self, body: Json, query: Json, folder: str, group: str, provenance: str
    ) -> Answer:
        if folder not in self.folders:
            return no(400, "folder does not exist")
        before = {each["uid"]: each for each in self._group(folder, group)}
        after = {each["uid"]: self._stored(each, folder, group) for each in body["rules"]}
        changed = [uid for uid in before.keys() | after.keys() if before.get(uid) != after.get(uid)]
        for uid in changed:
            if self.rules.get(uid, {}).get("provenance", "") not in ("", provenance):
                return no(409, f"cannot change provenance from file to {provenance}")
        for uid in changed:
            self.rules.pop(uid, None)
            if uid in after:
                told = {"provenance": provenance} if provenance else {}
                self.rules[uid] = {**after[uid], **told}
        self.intervals[folder, group] = body["interval"]
        return 200, body

    def _stored(self, rule: Json, folder: str, group: str) -> Json:
        kept = {**rule, "folderUID": folder, "ruleGroup": group, "orgID": 3}
        kept.setdefault("isPaused", False)
        if self.major < 12:
            kept.pop("keep_firing_for", None)
        for query in kept["data"]:
            query.setdefault("queryType", "")
            query["model"] = {"intervalMs": 1000, "maxDataPoints": 43200, **query["model"]}
        old = self.rules.get(rule["uid"], {})
        return {**kept, **({"provenance": old["provenance"]} if "provenance" in old else {})}

    def get_contacts(self, body: Any, query: Json) -> Answer:
        return 200, list(self.contacts.values())

    def post_contact(self, body: Json, query: Json, provenance: str) -> Answer:
        if body["uid"] in self.contacts:
            return no(400, f"contact point with uid '{body['uid']}' already exists")
        self.contacts[body["uid"]] = {**body, "provenance": provenance}
        return 202, self.contacts[body["uid"]]

    def put_contact(self, body: Json, query: Json, uid: str, provenance: str) -> Answer:
        if uid not in self.contacts:
            return no(404, "contact point not found")
        if self.contacts[uid].get("provenance", "") not in ("", provenance):
            return no(409, "cannot change provenance")
        self.contacts[uid] = {**body, "provenance": provenance}
        return 202, {"message": "contactpoint updated"}

    def delete_contact(self, body: Any, query: Json, uid: str) -> Answer:
        if any(each["receiver"] == self.contacts[uid]["name"] for each in self.policies["routes"]):
            return no(409, "contact point is currently used by a notification policy")
        del self.contacts[uid]
        return 202, {"message": "contactpoint deleted"}

    def get_policies(self, body: Any, query: Json) -> Answer:
        return 200, self.policies

    def put_policies(self, body: Json, query: Json, provenance: str) -> Answer:
        names = {"grafana-default-email", *(each["name"] for each in self.contacts.values())}
        if any(route["receiver"] not in names for route in body["routes"]):
            return no(400, "receiver does not exist")
        if self.policies.get("provenance", "") not in ("", provenance):
            return no(409, "cannot change provenance")
        self.policies = {**body, **({"provenance": provenance} if provenance else {})}
        return 202, {"message": "policies updated"}

    def get_annotations(self, body: Any, query: Json) -> Answer:
        since, until = int(query.get("from", [0])[0]), int(query.get("to", [2**62])[0])
        tags = set(query.get("tags", []))
        rows = [
            each
            for each in reversed(self.annotations)
            if tags <= set(each["tags"]) and since <= each["time"] <= until
        ]
        return 200, rows[: int(query.get("limit", [100])[0])]

    def post_annotation(self, body: Json, query: Json) -> Answer:
        if not body.get("text"):
            return no(400, "Failed to save annotation: text field should not be empty")
        self.annotations.append({**body, "id": len(self.annotations) + 1})
        return _ok("Annotation added", id=len(self.annotations))


ROUTES: dict[str, dict[str, Callable[..., Answer]]] = {
    "/health": {"GET": Double.health},
    "/folders": {"POST": Double.post_folder},
    "/folders/([^/]+)": {"GET": Double.get_folder, "DELETE": Double.delete_folder},
    "/dashboards/db": {"POST": Double.post_dashboard},
    "/dashboards/uid/([^/]+)": {"GET": Double.get_dashboard, "DELETE": Double.delete_dashboard},
    "/dashboards/uid/([^/]+)/versions": {"GET": Double.versions},
    "/search": {"GET": Double.search},
    "/library-elements": {"GET": Double.library},
    "/datasources": {"GET": Double.get_sources, "POST": Double.post_source},
    "/datasources/uid/([^/]+)": {
        "GET": Double.get_source,
        "PUT": Double.put_source,
        "DELETE": Double.delete_source,
    },
    f"{V1}/alert-rules": {"GET": Double.get_rules},
    f"{V1}/alert-rules/([^/]+)": {"DELETE": Double.delete_rule},
    f"{V1}/folder/([^/]+)/rule-groups/([^/]+)": {"GET": Double.get_group, "PUT": Double.put_group},
    f"{V1}/contact-points": {"GET": Double.get_contacts, "POST": Double.post_contact},
    f"{V1}/contact-points/([^/]+)": {"PUT": Double.put_contact, "DELETE": Double.delete_contact},
    f"{V1}/policies": {"GET": Double.get_policies, "PUT": Double.put_policies},
    "/annotations": {"GET": Double.get_annotations, "POST": Double.post_annotation},
}
