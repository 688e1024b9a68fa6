"""What is generated is as committed, and nothing else lies beside it."""

from __future__ import annotations

from dashboards.generate import ROOT, SHIPPED, generated

FOLDERS = (ROOT / "grafana", ROOT / "rules", SHIPPED)


def test_every_generated_file_is_up_to_date() -> None:
    stale = [
        path.name
        for path, text in generated().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    assert not stale, "run: make generate"


def test_nothing_that_is_no_longer_generated_is_left() -> None:
    on_disk = {path for folder in FOLDERS for path in folder.rglob("*") if path.is_file()}
    assert on_disk <= set(generated())
