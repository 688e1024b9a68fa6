"""The figures of a snapshot's page, each with its numbers as a table."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from forcegauge.reporting.plots import PLAIN, STYLES, digits
from forcegauge.reporting.safe import inline, plot_text, shown
from forcegauge_monitor.entk.pieces import metadata_of, read_piece

Table = Mapping[str, Mapping[str, float]]
Spec = dict[str, Any]

Card = tuple[Spec, str, str, str]
"""A figure, its title, how to read it, and its numbers as an HTML table."""


def figures(metrics: Mapping[str, Any], folder: Path) -> Iterable[Card]:
    """The figures that a snapshot has numbers for, in the order of the page."""
    sides = [*metrics["updated"], *(["sample"] if len(metrics["updated"]) > 1 else [])]
    yield _heat(
        "attribution",
        "Who pushes what",
        "Mean over training samples: what one step on a sample (columns: each of its sequences, "
        "and the whole) does to each response type (rows). Blue raises, orange lowers. Nats per "
        "unit of learning rate.",
        metrics["attribution_nats"],
        sides,
        "signed",
    )
    if "attribution_adam_nats" in metrics:
        yield _heat(
            "adam",
            "Who pushes what, through Adam",
            "The same with the checkpoint’s optimizer state: the marginal effect of a sample on "
            "the step that Adam makes.",
            metrics["attribution_adam_nats"],
            sides,
            "signed",
        )
    for key, title in (
        ("entk_norm", "The kernel"),
        ("entk_fisher_norm", "The kernel, Fisher-weighted"),
    ):
        if key in metrics:
            columns = list(next(iter(metrics[key].values())))
            yield _heat(key, title, _KERNEL, metrics[key], columns, "norm", metrics[f"{key}_error"])
    if len(metrics.get("history", [])) > 1:
        yield _over_time(metrics["history"])
    if "prediction" in metrics:
        yield _scatter(metrics, folder)


_KERNEL = (
    "How much of a change asked of the column’s logits reaches the row’s logits, on the same "
    "prompt: norm of the centred kernel per pair of tokens, root mean square over probes, "
    "± standard error of the random seeds."
)


def _heat(
    key: str,
    title: str,
    reading: str,
    table: Table,
    columns: Sequence[str],
    scale: str,
    error: Table | None = None,
) -> Card:
    rows = list(table)
    z = [[table[row].get(column) for column in columns] for row in rows]
    largest = max((abs(value) for row in z for value in row if value is not None), default=1.0)
    spec: Spec = {
        "key": key,
        "height": 90 + 30 * len(rows),
        "x": {"title": {"text": "updated"}, "side": "bottom"},
        "y": {"autorange": "reversed"},
        "data": [
            {
                "type": "heatmap",
                "meta": {"scale": scale},
                "x": [plot_text(column) for column in columns],
                "y": [plot_text(row) for row in rows],
                "z": z,
                "zmin": -largest if scale == "signed" else 0,
                "zmax": largest,
                "text": [[digits(value) for value in row] for row in z],
                "texttemplate": "%{text}",
                "hovertemplate": "%{y} by %{x}: %{text}<extra></extra>",
            }
        ],
    }
    return spec, title, reading, _html_table(title, table, columns, error)


def _html_table(
    title: str,
    table: Table,
    columns: Sequence[str],
    error: Table | None,
    rows: str = "observed",
) -> str:
    heads = "".join(f'<th scope="col">{inline(column)}</th>' for column in columns)
    lines = "".join(
        f'<tr><th scope="row">{inline(row)}</th>'
        + "".join(f"<td>{_with_error(values, error, row, column)}</td>" for column in columns)
        + "</tr>"
        for row, values in table.items()
    )
    return (
        f"<table><caption>{shown(title)}</caption><thead><tr>"
        f'<th scope="col">{rows}</th>{heads}</tr></thead><tbody>{lines}</tbody></table>'
    )


def _with_error(values: Mapping[str, float], error: Table | None, row: str, column: str) -> str:
    text = digits(values.get(column))
    spread = None if error is None else error.get(row, {}).get(column)
    return text if spread is None else f"{text} ± {digits(spread)}"


def _scatter(metrics: Mapping[str, Any], folder: Path) -> Card:
    found = read_piece(folder / "changes.safetensors")
    types = json.loads(metadata_of(folder / "changes.safetensors")["types"])
    predicted, measured = found["predicted"], found["measured"]
    kept = [value for value in predicted.flatten().tolist() if math.isfinite(value)]
    ends = [min(kept, default=0.0), max(kept, default=0.0)]
    exact = _trace("exact", "plain", ends, ends, mode="lines") | {"line": {"dash": "dot"}}
    spec: Spec = {
        "key": "prediction",
        "height": 420,
        "x": {"title": {"text": "predicted change, nats per token"}},
        "y": {"title": {"text": "measured"}},
        "data": [exact, *_points(types, predicted, measured)],
    }
    columns = ("predicted", "measured")
    table = {
        name: {column: metrics[f"{column}_change_nats"][name] for column in columns}
        for name in types
    }
    title = "Predicted against measured"
    return spec, title, _agreement(metrics["prediction"]), _html_table(title, table, columns, None)


def _agreement(found: Mapping[str, float]) -> str:
    return (
        f"One point a probe’s response: the change that the gradient at the checkpoint before "
        f"predicts for the real step, against the measured one. R² {found['r2']:.3f} (of the "
        f"prediction itself), slope {found['slope']:.2f}, residual {digits(found['residual'])} "
        "nats. Far below 1: the step was too long, or the kernel moved, for one-step theory to "
        "hold."
    )


def _points(types: Sequence[str], predicted: Tensor, measured: Tensor) -> Iterable[Spec]:
    for place, name in enumerate(types):
        pairs = zip(predicted[:, place].tolist(), measured[:, place].tolist(), strict=True)
        kept = [pair for pair in pairs if all(map(math.isfinite, pair))]
        symbol = STYLES.get(name, PLAIN).marker
        yield _trace(name, name, [x for x, _ in kept], [y for _, y in kept], symbol=symbol)


def _trace(
    name: str,
    role: str,
    x: Sequence[float],
    y: Sequence[float | None],
    *,
    mode: str = "markers",
    symbol: str = "circle",
) -> Spec:
    """A line or points in the page's colour for a role."""
    return {
        "type": "scatter",
        "mode": mode,
        "name": plot_text(name),
        "meta": {"role": role},
        "x": list(x),
        "y": list(y),
        "marker": {"symbol": symbol, "size": 7},
    }


_LINES = {
    "alignment with the first": ("alignment_first", "one", "circle"),
    "alignment with the previous": ("alignment_previous", "two", "diamond"),
    "rank stability against the first": ("rank_first", "three", "square"),
}
"""What is drawn over time: its key in a snapshot's history, its colour and its marker."""


def _over_time(history: Sequence[Mapping[str, Any]]) -> Card:
    """Stability of all snapshots so far, against the run's first and the one before each."""
    stepped = all(each["step"] is not None for each in history)
    x = [each["step"] if stepped else place for place, each in enumerate(history)]
    spec: Spec = {
        "key": "stability",
        "height": 320,
        "x": {"title": {"text": "step" if stepped else "snapshot"}, "tickvals": x},
        "y": {"rangemode": "tozero"},
        "data": [
            _trace(label, role, x, [each[key] for each in history], mode="lines+markers",
                   symbol=symbol)
            for label, (key, role, symbol) in _LINES.items()
        ],
    }  # fmt: skip
    reading = (
        "Through the same random seeds at every snapshot: alignment 1 is the same kernel up to its "
        "size, 0 an unrelated one; rank stability is Spearman’s correlation of the response types’ "
        "norms. Where the alignment falls, numbers of an earlier snapshot no longer hold."
    )
    table = {
        str(place): {label: each[key] for label, (key, _, _) in _LINES.items()}
        for place, each in zip(x, history, strict=True)
    }
    title = "Stability over time"
    return spec, title, reading, _html_table(title, table, list(_LINES), None, "snapshot")
