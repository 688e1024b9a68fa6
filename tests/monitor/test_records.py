from __future__ import annotations

import json
from pathlib import Path

import pytest

from forcegauge.errors import InputError
from forcegauge_monitor.records import Snapshot, allowed, check_path, from_json, to_json
from forcegauge_monitor.settings import Settings


def settings_for(*roots: Path | str) -> Settings:
    return Settings(storage="/nowhere", roots=tuple(map(str, roots)))


def test_a_record_comes_back_from_its_json() -> None:
    snapshot = Snapshot("1", "a", "/c", 5, "/p", "/t", beta=0.1, metrics={"entk_norm": {}})
    assert from_json(Snapshot, json.loads(json.dumps(to_json(snapshot)))) == snapshot


def test_fields_of_a_later_version_are_left_out() -> None:
    snapshot = Snapshot("1", "a", "/c", 5, "/p", "/t")
    assert from_json(Snapshot, {**to_json(snapshot), "new": 1}) == snapshot


def test_what_lies_in_the_storage_is_allowed(tmp_path: Path) -> None:
    assert allowed(Settings(storage=str(tmp_path)), str(tmp_path / "checkpoint-1"))


def test_nothing_else_is_allowed_without_roots(tmp_path: Path) -> None:
    assert not allowed(Settings(storage=str(tmp_path / "storage")), str(tmp_path / "a"))


@pytest.mark.parametrize("path", ["/etc/passwd", "{root}/../other", "{root}x/c", "", "{root}/\0"])
def test_a_path_beside_the_root_is_refused(tmp_path: Path, path: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    with pytest.raises(InputError, match="checkpoint: lies under no allowed root"):
        check_path(settings_for(root), path.format(root=root), "checkpoint")


def test_a_link_that_leads_out_of_the_root_is_refused(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "secret")
    assert not allowed(settings_for(tmp_path / "root"), str(tmp_path / "root" / "link" / "c"))


def test_a_path_is_given_back_resolved(tmp_path: Path) -> None:
    found = check_path(settings_for(tmp_path), f"{tmp_path}/a/../checkpoint-1", "checkpoint")
    assert found == str(tmp_path.resolve() / "checkpoint-1")


def test_a_url_under_an_allowed_one_is_allowed() -> None:
    assert allowed(settings_for("s3://bucket/runs"), "s3://bucket/runs/a/checkpoint-1")


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/runs/../secrets",
        "s3://bucket/runs/%2e%2e/secrets",
        "s3://bucket/runsx/a",
        "s3://other/runs/a",
        "gs://bucket/runs/a",
        "s3://bucket/runs/a?endpoint=http://evil",
        "simplecache::s3://bucket/runs/a",
        "s3://bucket@evil/runs/a",
        "file:///etc/passwd",
        "http://[",
    ],
)
def test_a_url_that_leads_elsewhere_is_refused(url: str) -> None:
    assert not allowed(settings_for("s3://bucket/runs", "/"), url)


def test_a_folder_is_not_allowed_by_a_url() -> None:
    assert not allowed(settings_for("s3://bucket/runs"), "/bucket/runs/a")
