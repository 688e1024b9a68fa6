"""What Kubernetes would refuse of a manifest: by its own schemas, and by those of CRDs."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from kubernetes_validate import utils

from tests.helm.charts import Document, name_of

VERSIONS = tuple(
    sorted(
        {utils.major_minor(each) for each in utils.all_versions()} - {"1.25", "1.26", "1.27"},
        key=lambda each: int(each.split(".")[1]),
    )
)
"""Of Kubernetes, from the oldest that the chart supports to the newest whose schemas we have."""

# without this each manifest costs 10 ms, since the 1.6 MB of definitions are read for each
vars(utils)["schema_contents"] = cache(utils.schema_contents)


def problems(document: Document, version: str) -> list[str]:
    """What a Kubernetes of this version would refuse, empty where nothing."""
    group = document["apiVersion"].partition("/")[0]
    if group in _groups():
        return _of_custom(document)
    try:
        kubernetes_validate.validate(document, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{name_of(document)}: {list(error.path)}: {error.message}"]
    return []


def _of_custom(document: Document) -> list[str]:
    key = (document["apiVersion"], document["kind"])
    validator = _validators()[key]
    found = validator.iter_errors(document)
    return [f"{name_of(document)}: {error.json_path}: {error.message}" for error in found]


def _groups() -> set[str]:
    return {version.partition("/")[0] for version, _ in _validators()}


@cache
def _validators() -> dict[tuple[str, str], jsonschema.Draft202012Validator]:
    """Of each CRD, by API version and kind."""
    return dict(made for text in _crds() for made in _read(text))


def _crds() -> Iterator[str]:
    """Texts of all CRDs in the folders of schemas and of tools."""
    for file in sorted(_folder("SCHEMAS").glob("crd-*.yaml")):
        yield file.read_text()
    with tarfile.open(_folder("TOOLS") / "kube" / "crds.tar.xz") as archive:
        found = archive.extractfile("./monitoring.coreos.com_scrapeconfigs.yaml")
        assert found is not None
        yield found.read().decode()


def _folder(part: str) -> Path:
    folder = os.environ.get(f"FORCEGAUGE_TEST_{part}")
    if not folder:
        pytest.skip(f"FORCEGAUGE_TEST_{part} names no folder with CRDs")
    return Path(folder)


def _read(text: str) -> Iterator[tuple[tuple[str, str], jsonschema.Draft202012Validator]]:
    spec = yaml.load(text, Loader=yaml.CSafeLoader)["spec"]
    for version in spec["versions"]:
        schema = closed(version["schema"]["openAPIV3Schema"])
        schema["properties"]["metadata"] = {"type": "object"}
        key = (f"{spec['group']}/{version['name']}", spec["names"]["kind"])
        yield key, jsonschema.Draft202012Validator(schema)


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """A CRD's schema that refuses unknown fields, as `kubectl --validate=strict` does."""
    made = {name: _closed_in(value) for name, value in schema.items()}
    if schema.get("x-kubernetes-int-or-string"):
        made["type"] = ["integer", "string"]
    open_to_all = schema.get("x-kubernetes-preserve-unknown-fields")
    if "properties" in schema:
        made["properties"] = {name: closed(part) for name, part in schema["properties"].items()}
        if not open_to_all:
            made.setdefault("additionalProperties", False)
    if schema.get("nullable") and "type" in made:
        made["type"] = [made["type"], "null"]
    # in an alternative only what differs is written, so that it may not be closed by itself
    return made


def _closed_in(value: Any) -> Any:
    return closed(value) if isinstance(value, dict) and "type" in value else value
