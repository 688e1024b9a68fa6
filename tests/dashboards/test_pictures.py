"""Each picture of the README belongs to the committed dashboard and to what its queries bring."""

from __future__ import annotations

import json
import re

import pytest

from dashboards.preview.answers import filled
from dashboards.preview.queries import FOLDER, dashboards
from dashboards.preview.stamp import digest, stamped, stamps
from tests.dashboards.replay import HEALTHY, SQUEEZING, WINDOW

PICTURES = FOLDER.parent / "pictures"
STALE = "run: make preview"


def test_every_dashboard_has_its_picture_and_no_other_lies_there() -> None:
    assert {path.stem for path in PICTURES.glob("*.png")} == set(dashboards())


def test_pictures_are_of_the_committed_dashboards() -> None:
    for name, dashboard in dashboards().items():
        drawn = stamps((PICTURES / f"{name}.png").read_bytes())
        assert drawn["dashboard"] == digest(json.dumps(dashboard, sort_keys=True)), (name, STALE)


@pytest.mark.slow
def test_pictures_show_what_the_queries_bring(replay_url: str) -> None:
    for name, dashboard in dashboards().items():
        drawn = stamps((PICTURES / f"{name}.png").read_bytes())
        now = filled(replay_url, dashboard, (SQUEEZING, HEALTHY), WINDOW)
        assert drawn == now.stamps, (name, STALE)


def test_a_picture_without_stamps_has_none_and_a_stamped_one_keeps_its_pixels() -> None:
    png = (PICTURES / "run.png").read_bytes()
    bare = re.sub(rb"....tEXt(dashboard|results)\0.{16}....", b"", png, flags=re.DOTALL)
    assert stamps(bare) == {}
    again = stamped(bare, stamps(png))
    assert again == png
