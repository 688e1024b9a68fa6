"""What the manifests call exists: commands, flags, settings, ports, rules and dashboards."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import click
import pytest
import yaml

from forcegauge.cli import cli
from forcegauge_monitor.settings import PREFIX, Settings
from tests.helm.charts import (
    ALONE,
    ROOT,
    Document,
    Features,
    containers,
    documents,
    name_of,
    of_kind,
    pod_template,
)

each_feature = pytest.mark.parametrize(
    "features", ALONE, ids=lambda names: "+".join(names) or "none"
)

OTHERS = {"HOME", "REDIS_PASSWORD", "REDISCLI_AUTH", "URL", "TOKEN"} | {
    "HF_HOME",
    "FORWARDED_ALLOW_IPS",
}
"""Variables that are not ours: of image, Redis and `helm test`, and what features add."""


def all_containers(features: Features) -> Iterator[tuple[str, Document]]:
    """What makes it, and the container."""
    for document in documents(features):
        for container in containers(pod_template(document) or {"spec": {"containers": []}}):
            yield name_of(document), container


def calls(container: Document) -> Iterator[list[str]]:
    """The words after `forcegauge` of every call in command, arguments and probes."""
    probes = [container.get(f"{name}Probe", {}) for name in ("liveness", "readiness", "startup")]
    commands = [each["exec"]["command"] for each in probes if "exec" in each]
    commands.append([*container.get("command", []), *container.get("args", [])])
    if "command" not in container and "forcegauge" in container["image"]:
        yield container.get("args", [])
    for command in commands:
        if command[:1] == ["forcegauge"]:
            yield command[1:]
        yield from (line.split() for line in re.findall(r"\bforcegauge (.*)", str(command[-1:])))


@each_feature
def test_every_command_exists_with_its_flags(features: Features) -> None:
    for name, container in all_containers(features):
        for words in calls(container):
            parses(words, name)


def parses(words: list[str], where: str) -> None:
    command: click.Command = cli
    context = click.Context(cli)
    while isinstance(command, click.Group):
        name, *words = words
        found = command.get_command(context, name)
        assert found is not None, f"{where}: no command {name}"
        command, context = found, click.Context(found, parent=context, info_name=name)
    values, rest, _ = command.make_parser(context).parse_args(words)
    assert not rest, f"{where}: {rest}"
    for parameter in command.params:
        if parameter.name in values:
            parameter.type_cast_value(context, values[parameter.name])


def variables(features: Features) -> Iterator[tuple[str, str]]:
    """Where a variable is set, and its name: in containers, and in what they take as a whole."""
    whole = {
        source[kind]["name"]
        for _, container in all_containers(features)
        for source in container.get("envFrom", [])
        for kind in ("configMapRef", "secretRef")
        if kind in source
    }
    for where, container in all_containers(features):
        yield from ((where, each["name"]) for each in container.get("env", []))
    for document in of_kind(documents(features), "ConfigMap", "Secret"):
        if document["metadata"]["name"] in whole:
            data = {**document.get("data", {}), **document.get("stringData", {})}
            yield from ((name_of(document), name) for name in data)


@each_feature
def test_every_variable_is_a_setting(features: Features) -> None:
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields} | OTHERS
    assert {each for each in variables(features) if each[1] not in known} == set()


def test_the_monitor_listens_on_its_usual_port() -> None:
    (service,) = (
        each
        for each in of_kind(documents(), "Service")
        if each["spec"]["selector"].get("app.kubernetes.io/component") == "api"
    )
    assert service["spec"]["ports"][0]["port"] == Settings.model_fields["port"].default


def named_ports(pod: Document) -> dict[str, int]:
    return {
        port["name"]: port["containerPort"]
        for container in containers(pod)
        for port in container.get("ports", [])
    }


@each_feature
def test_every_probe_asks_a_port_that_its_container_opens(features: Features) -> None:
    for where, container in all_containers(features):
        names = {port["name"] for port in container.get("ports", [])}
        for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
            for kind in ("httpGet", "tcpSocket"):
                asked: Any = container.get(probe, {}).get(kind)
                assert asked is None or asked["port"] in names, f"{where}: {probe}"


def test_the_rule_is_the_generated_one() -> None:
    committed = yaml.safe_load(
        (ROOT / "dashboards/rules/forcegauge.prometheusrule.yaml").read_text()
    )
    rules = [each for names in ALONE for each in of_kind(documents(names), "PrometheusRule")]
    assert rules
    assert all(each["spec"] == committed["spec"] for each in rules)


def test_the_dashboards_are_the_generated_ones_byte_for_byte() -> None:
    boards = (ROOT / "dashboards/grafana").glob("*.json")
    generated = {f"forcegauge-{path.name}": path.read_text() for path in boards}
    shown = [
        each["data"]
        for names in ALONE
        for each in of_kind(documents(names), "ConfigMap")
        if any(name.endswith(".json") for name in each["data"])
    ]
    assert shown
    assert {name for data in shown for name in data} == set(generated)
    assert all(len(data) == 1 and data.items() <= generated.items() for data in shown)
