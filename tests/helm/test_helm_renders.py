"""Both Helms take every feature and every pair of features, and make the same of them."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from tests.helm.charts import (
    CHART,
    CONTRADICTIONS,
    HELMS,
    PAIRS,
    Document,
    Features,
    call,
    documents,
    linted,
    possible,
    render_all,
    rendered,
)

pytestmark = pytest.mark.usefixtures("_rendered")


@pytest.fixture(scope="module")
def _rendered() -> None:
    render_all()


@pytest.mark.parametrize("helm", HELMS)
def test_every_feature_and_pair_renders(helm: str) -> None:
    failed = {each: rendered(helm, each).error for each in possible() if rendered(helm, each).code}
    assert not failed


@pytest.mark.parametrize("helm", HELMS)
@pytest.mark.parametrize("pair", CONTRADICTIONS, ids=lambda pair: "+".join(sorted(pair)))
def test_features_that_exclude_each_other_are_refused_with_the_reason(
    helm: str, pair: frozenset[str]
) -> None:
    (given,) = (each for each in PAIRS if frozenset(each) == pair)
    answer = rendered(helm, given)
    assert answer.code == 1
    assert CONTRADICTIONS[pair] in answer.error


@pytest.mark.parametrize("helm", HELMS)
def test_lint_finds_nothing(helm: str) -> None:
    wanted = list(possible())
    with ThreadPoolExecutor(2) as pool:
        answers = dict(zip(wanted, pool.map(partial(linted, helm), wanted), strict=True))
    found = {each: answer.out + answer.error for each, answer in answers.items()}
    assert {each: found[each] for each, answer in answers.items() if answer.code} == {}
    assert not [each for each in wanted if re.search(r"\[(WARNING|ERROR)\]", found[each])]


@pytest.mark.parametrize("helm", HELMS)
def test_the_package_has_the_charts_name_and_version(helm: str, tmp_path: Path) -> None:
    answer = call(helm, "package", str(CHART), "--destination", str(tmp_path))
    assert answer.code == 0, answer.error
    assert [path.name for path in tmp_path.iterdir()] == ["forcegauge-0.1.0.tgz"]


def test_both_helms_make_the_same_but_for_what_is_random() -> None:
    three, four = ({each: made(each, helm) for each in possible()} for helm in HELMS)
    assert [each for each in three if three[each] != four[each]] == []


def made(features: Features, helm: str) -> tuple[Document, ...]:
    """The manifests, with `***` for what a secret is generated from."""
    found = documents(features, helm)
    return tuple(masked(each) for each in found)


def masked(document: Document) -> Document:
    """A manifest without random values: those of generated secrets, and checksums over them."""
    if document["kind"] == "Secret":
        hidden = dict.fromkeys((*document.get("data", {}), *document.get("stringData", {})), "***")
        return {**document, "data": hidden, "stringData": {}}
    return document
