"""Random values that the chart's schema takes."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from dashboards.chart_readme import Key, Schema, keys, resolved

Drawn = st.SearchStrategy[Any]

TEXT = st.text("aZ09 .:-_/\\\"'{}[]()$#&*!|>%@`,=~?\n\té€", max_size=16)
"""What may break YAML, templates and shells that do not quote."""

NAMES = st.from_regex(r"[a-z]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)

SELECTORS = st.sampled_from([{}, {"matchLabels": {"app": "a"}}])

OBJECTS: dict[str, Drawn] = {
    "affinity": st.sampled_from([{}, {"nodeAffinity": {}}, {"podAntiAffinity": {}}]),
    "podSecurityContext": st.fixed_dictionaries({"fsGroup": st.integers(1, 9)}),
    "securityContext": st.fixed_dictionaries({"privileged": st.booleans()}),
    "resources": st.fixed_dictionaries(
        {"requests": st.fixed_dictionaries({"cpu": st.sampled_from(["1", "250m", 2])})}
    ),
    "selector": SELECTORS,
    "labelSelector": SELECTORS,
    "podSelector": SELECTORS,
    "namespaceSelector": SELECTORS,
    "monitoring.podMonitor.namespaceSelector": st.sampled_from([{}, {"any": True}]),
    "extraEnv": st.dictionaries(NAMES, st.one_of(TEXT, st.booleans(), st.integers(0))),
    "extraVolumes": st.lists(
        st.fixed_dictionaries({"name": NAMES, "emptyDir": st.just({})}), max_size=2
    ),
    "extraObjects": st.lists(
        st.fixed_dictionaries(
            {
                "apiVersion": st.just("v1"),
                "kind": st.just("ConfigMap"),
                "metadata": st.fixed_dictionaries({"name": NAMES}),
            }
        ),
        max_size=2,
    ),
}
"""Objects that the schema leaves to Kubernetes, by their key."""


@st.composite
def few_values(draw: st.DrawFn) -> dict[str, Any]:
    """Values of one to five keys of the chart."""
    known = {key.path: key for key in keys()}
    paths = draw(st.lists(st.sampled_from(list(known)), min_size=1, max_size=5, unique=True))
    return nested({path: draw(value_of(known[path])) for path in paths})


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """Values by paths with dots as Helm takes them."""
    made: dict[str, Any] = {}
    for path, value in flat.items():
        *above, name = path.split(".")
        into = made
        for part in above:
            into = into.setdefault(part, {})
        into[name] = value
    return made


def value_of(key: Key) -> Drawn:
    """What a key may be."""
    name = key.path.rpartition(".")[2]
    return OBJECTS[key.path] if key.path in OBJECTS else of_schema(key.schema, name)


def of_schema(part: Schema, name: str) -> Drawn:
    """What fits a part of the schema; ``name`` is that of the key that holds it."""
    if name in OBJECTS:
        return OBJECTS[name]
    part = resolved(part)
    if "enum" in part:
        return st.sampled_from(part["enum"])
    kinds = part["type"] if isinstance(part["type"], list) else [part["type"]]
    return st.one_of([_of_type(kind, part, name) for kind in kinds])


def _of_type(kind: str, part: Schema, name: str) -> Drawn:
    match kind:
        case "string":
            return _text(part)
        case "integer" | "number":
            low = part.get("minimum", part.get("exclusiveMinimum", -1) + 1)
            return st.integers(low, part.get("maximum", 100000))
        case "boolean":
            return st.booleans()
        case "array":
            return st.lists(of_schema(part["items"], name), max_size=2)
    return _object(part)


def _text(part: Schema) -> Drawn:
    found: Drawn = st.from_regex(part["pattern"]) if "pattern" in part else TEXT
    low, high = part.get("minLength", 0), part.get("maxLength", 60)
    # in Go, unlike here, the end of a pattern is no place before a last newline
    return found.filter(lambda text: low <= len(text) <= high and not text.endswith("\n"))


def _object(part: Schema) -> Drawn:
    if "properties" not in part:
        return st.dictionaries(NAMES, of_schema(part["additionalProperties"], ""), max_size=2)
    made = {name: of_schema(inner, name) for name, inner in part["properties"].items()}
    needed = {name: made.pop(name) for name in part.get("required", ())}
    return st.fixed_dictionaries(needed, optional=made)
