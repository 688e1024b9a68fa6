"""HTTP: runs, snapshots, Prometheus' service discovery and metrics, health."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, FastAPI, Path, Query, Request, Response, Security
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from starlette.exceptions import HTTPException

from forcegauge_monitor.asking import ask, ask_for_checkpoints, snapshot_of
from forcegauge_monitor.bodies import (
    RUN_NAME,
    Accepted,
    Asked,
    EndBody,
    Heartbeat,
    Registered,
    RunBody,
    RunList,
    RunPage,
    SnapshotBody,
    SnapshotList,
)
from forcegauge_monitor.exporter import Requests, exposition, make_registry
from forcegauge_monitor.guard import Guard
from forcegauge_monitor.problems import RESPONSES, add_problems
from forcegauge_monitor.records import Run, Snapshot
from forcegauge_monitor.runbooks import as_page, contents, runbook
from forcegauge_monitor.settings import Settings
from forcegauge_monitor.store import Store

Submit = Callable[[Snapshot], None]

RunName = Annotated[str, Path(pattern=RUN_NAME)]
Key = Annotated[str, Path(pattern=r"^[0-9A-Za-z_-]{1,64}$")]


def create_app(settings: Settings, store: Store, submit: Submit) -> FastAPI:
    """The application; ``submit`` hands a queued snapshot to the workers.

    Raises `InputError` for tokens that cannot be used, and where it would listen beyond this
    machine without any.
    """
    app = FastAPI(
        title="forcegauge monitor",
        summary="Runs, snapshots and discovery for finetuning runs that forcegauge watches.",
        docs_url=None,
        redoc_url=None,
        responses=RESPONSES,
    )
    requests = Requests()
    add_problems(app)
    app.include_router(_pages(store, requests))
    app.include_router(_told(settings, store, submit))
    app.include_router(_runs(store))
    app.include_router(_snapshots(settings, store, submit))
    app.add_middleware(Guard, settings=settings, seen=requests.seen)
    return app


def _router() -> APIRouter:
    # the guard asks for the token before the body is read; this declares it
    declared = Security(HTTPBearer(auto_error=False))
    return APIRouter(prefix="/api/v1", dependencies=[declared])


def _told(settings: Settings, store: Store, submit: Submit) -> APIRouter:
    """What agents tell."""
    routes = _router()

    @routes.post("/runs", status_code=201, responses={200: {"model": Registered}})
    def register(body: RunBody, response: Response) -> Registered:
        """Register a run: 201, or 200 for one of the same record that goes on."""
        state = store.register(body.record())
        response.status_code = 201 if state == "created" else 200
        return Registered(run=body.run, state="created" if state == "created" else "same")

    @routes.post("/runs/{run}/heartbeat")
    def heartbeat(run: RunName, body: Heartbeat) -> Accepted:
        """Tell how a run is and what happened; told twice, an event counts once."""
        events = [each.record() for each in body.events]
        known = store.run(run) if events else None
        if known is not None and known.record_id == body.record_id:
            # first, so that a checkpoint is told again where this comes to nothing
            ask_for_checkpoints(settings, store, submit, known, events)
        beat = body.model_dump(include={"step", "verdict", "since_step", "evidence"})
        return Accepted(accepted=store.heartbeat(run, body.record_id, beat, events))

    @routes.post("/runs/{run}/end", status_code=204)
    def end(run: RunName, body: EndBody) -> None:
        """Tell that a run ended."""
        store.end(run, body.record_id, body.reason)

    return routes


def _runs(store: Store) -> APIRouter:
    routes = _router()

    @routes.get("/runs")
    def runs(
        offset: Annotated[int, Query(ge=0, le=10**9)] = 0,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> RunList:
        """Runs, the newest first."""
        found, total = store.runs(offset, limit)
        return RunList(runs=found, total=total)

    @routes.get("/runs/{run}")
    def one(run: RunName) -> RunPage:
        """One run as it is now, and its last events."""
        return RunPage(run=_known(store, run), events=store.events(run))

    return routes


def _snapshots(settings: Settings, store: Store, submit: Submit) -> APIRouter:
    routes = _router()

    @routes.post("/runs/{run}/snapshots", status_code=202)
    def asked(run: RunName, body: SnapshotBody) -> Asked:
        """Ask for a snapshot; one that answers the same question already is not made again."""
        wanted = snapshot_of(settings, _known(store, run), body)
        found = ask(store, submit, wanted)
        return Asked(id=found.id, state=found.state)

    @routes.get("/runs/{run}/snapshots")
    def snapshots(run: RunName) -> SnapshotList:
        """A run's snapshots, the oldest first."""
        _known(store, run)
        return SnapshotList(snapshots=[replace(e, metrics={}) for e in store.snapshots(run)])

    @routes.get("/snapshots")
    def failed(state: Literal["failed"] = "failed") -> SnapshotList:
        """The snapshots of all runs that failed, with the reason, the oldest first."""
        return SnapshotList(snapshots=[replace(each, metrics={}) for each in store.dead()])

    @routes.post("/runs/{run}/snapshots/{key}/requeue", status_code=202)
    def requeued(run: RunName, key: Key) -> Asked:
        """Queue a snapshot again that failed, was cancelled or superseded; 409 for any other."""
        again = store.requeue(run, key)
        if again is None:
            state = _found(store, run, key).state
            raise HTTPException(409, f"The snapshot {key} is {state}: nothing to queue again.")
        submit(again)
        return Asked(id=again.id, state=again.state)

    @routes.get("/runs/{run}/snapshots/{key}")
    def snapshot(run: RunName, key: Key) -> Snapshot:
        """One snapshot: how far it is, and its numbers."""
        return _found(store, run, key)

    @routes.delete("/runs/{run}/snapshots/{key}")
    def cancel(run: RunName, key: Key) -> Snapshot:
        """Cancel a snapshot; one that is over stays as it is."""
        store.cancel(run, key)
        return _found(store, run, key)

    return routes


def _known(store: Store, run: str) -> Run:
    found = store.run(run)
    if found is None:
        raise HTTPException(404, f"No run {run} is known; register it first.")
    return found


def _found(store: Store, run: str, key: str) -> Snapshot:
    found = store.snapshot(run, key)
    if found is None:
        raise HTTPException(404, f"The run {run} has no snapshot {key}.")
    return found


def _pages(store: Store, requests: Requests) -> APIRouter:
    routes, registry = APIRouter(), make_registry(store, requests)

    @routes.get("/healthz")
    async def healthz() -> dict[str, str]:
        """This process answers; Redis is not asked."""
        return {"status": "ok"}

    @routes.get("/readyz")
    def readyz() -> dict[str, str]:
        """The store answers too."""
        store.ping()
        return {"status": "ready"}

    @routes.get("/metrics", response_class=Response)
    def metrics() -> Response:
        """All that the monitor knows, for Prometheus."""
        return Response(exposition(registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    @routes.get("/sd/targets", response_class=Response)
    def targets() -> Response:
        """The live runs' addresses, for Prometheus' ``http_sd_configs``: always all of them."""
        return Response(f"[{','.join(store.targets())}]", media_type="application/json")

    @routes.get("/runbooks", response_class=RedirectResponse, status_code=307)
    def all_books() -> str:
        """To the list, so that its links are relative to it."""
        return "runbooks/"

    @routes.get("/runbooks/", response_class=Response, responses=MARKUP)
    def list_of_books(request: Request) -> Response:
        """All alerts with what they say, each a link to its page."""
        return _book(request, contents())

    @routes.get("/runbooks/{alert}", response_class=Response, responses=MARKUP)
    def book(request: Request, alert: Annotated[str, Path(max_length=64)]) -> Response:
        """What an alert means and what to do: HTML for a browser, Markdown for the rest."""
        text = runbook(alert.removesuffix(".md"))
        if text is None:
            raise HTTPException(404, "No alert of this name is known.")
        return _book(request, text)

    return routes


def _book(request: Request, text: str) -> Response:
    headers = {"Vary": "Accept", "Content-Security-Policy": CONTENT_ONLY}
    if "text/html" in request.headers.get("accept", ""):
        return HTMLResponse(as_page(text), headers=headers)
    return Response(text, media_type="text/markdown", headers=headers)


MARKUP: dict[int | str, dict[str, Any]] = {200: {"content": {"text/markdown": {}, "text/html": {}}}}

CONTENT_ONLY = "default-src 'none'; style-src 'unsafe-inline'"
"""A runbook runs no script and loads nothing."""
