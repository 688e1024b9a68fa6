"""Where snapshots lie: a folder that all workers share, or a bucket that fsspec knows."""

from __future__ import annotations

import shutil
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from forcegauge.errors import RunError
from forcegauge.textfiles import first_line
from forcegauge_monitor.records import Snapshot
from forcegauge_monitor.settings import Settings

METRICS = "metrics.json"
"""A snapshot's numbers: the file that is written last."""


def folder_of(settings: Settings, run: str, key: str) -> Path:
    """The folder in which all workers do a snapshot."""
    root = settings.work if _is_url(settings.storage) else settings.storage
    return Path(root) / run / key


def put(settings: Settings, folder: Path, run: str, key: str) -> str:
    """Bring a finished snapshot to where it stays, and tell where that is.

    Raises `RunError` when the storage refuses or cannot be reached.
    """
    if not _is_url(settings.storage):
        return str(folder)
    url = _url_of(settings, run, key)
    _uploaded(folder, url)
    return url


def tidy(settings: Settings, folder: Path) -> None:
    """Remove what is also in the bucket."""
    if _is_url(settings.storage):
        shutil.rmtree(folder, ignore_errors=True)


def fetched(settings: Settings, snapshot: Snapshot) -> Path:
    """The folder of a finished snapshot, brought from the bucket where it is not there.

    Raises `RunError` when the storage cannot be reached.
    """
    path = str(snapshot.path)
    if not _is_url(path):
        return Path(path)
    folder = folder_of(settings, snapshot.run, snapshot.id)
    if not (folder / METRICS).is_file():
        _downloaded(path, folder)
    return folder


def remove(settings: Settings, snapshot: Snapshot) -> None:
    """Remove a snapshot's files where it was made and where it stays.

    Raises `RunError` when the storage refuses or cannot be reached.
    """
    folder = folder_of(settings, snapshot.run, snapshot.id)
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        # the run's last one
        folder.parent.rmdir()
    if _is_url(settings.storage):
        _removed(_url_of(settings, snapshot.run, snapshot.id))


def without_secret(url: str) -> str:
    """A URL as it may be logged."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rsplit('@', 1)[-1]}"


def _url_of(settings: Settings, run: str, key: str) -> str:
    return f"{settings.storage.rstrip('/')}/{run}/{key}"


def _is_url(storage: str) -> bool:
    return "://" in storage


def _opened(url: str) -> tuple[Any, str]:
    """File system and path of a URL; raises `RunError` where its driver is missing."""
    import fsspec

    try:
        found: tuple[Any, str] = fsspec.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise RunError(f"{without_secret(url)} cannot be used: {error}.") from None
    return found


def _uploaded(folder: Path, url: str) -> None:
    """Copy files beside their place and then move them, last the metrics that say it is whole."""
    files, place = _opened(url)
    part = f"{place}.part-{uuid.uuid4().hex[:8]}"
    names = sorted((path.name for path in folder.iterdir() if path.is_file()), key=_metrics_last)
    try:
        files.makedirs(part, exist_ok=True)
        files.makedirs(place, exist_ok=True)
        for name in names:
            files.put_file(str(folder / name), f"{part}/{name}")
        for name in names:
            files.mv(f"{part}/{name}", f"{place}/{name}")
        if files.exists(part):
            files.rm(part, recursive=True)
    except Exception as error:
        raise RunError(f"{without_secret(url)} cannot be written: {first_line(error)}.") from error


def _downloaded(url: str, folder: Path) -> None:
    files, place = _opened(url)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        names = [str(each).rsplit("/", 1)[-1] for each in files.ls(place, detail=False)]
        for name in sorted(names, key=_metrics_last):
            files.get_file(f"{place}/{name}", str(folder / name))
    except Exception as error:
        raise RunError(f"{without_secret(url)} cannot be read: {first_line(error)}.") from error


def _removed(url: str) -> None:
    files, place = _opened(url)
    try:
        if files.exists(place):
            files.rm(place, recursive=True)
    except Exception as error:
        raise RunError(f"{without_secret(url)} cannot be removed: {first_line(error)}.") from error


def _metrics_last(name: str) -> tuple[bool, str]:
    return name == METRICS, name
