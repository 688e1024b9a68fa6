"""One cluster for all tests of a session, with the project's images in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helm.cluster.figures import timed
from tests.helm.cluster.images import archives
from tests.helm.cluster.kube import Cluster, script
from tests.helm.cluster.kube import cluster as running


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A real cluster; gone with the session, however that ends."""
    script()
    made = archives()
    with running(tmp_path_factory.mktemp("cluster")) as one:
        with timed("loading the images"):
            one.tool("load", *map(str, made))
        yield one
