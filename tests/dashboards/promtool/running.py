"""Runs promtool's own unit tests of rules: cases to its files, and what it says."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from forcegauge_monitor.alert import Alert
from tests.dashboards.promtool.case import Case, Labels
from tests.servers import require

Json = dict[str, Any]


def tried(folder: Path, alert: Alert, cases: Sequence[Case]) -> str:
    """Try an alert on cases, without its annotations; all that promtool finds wrong."""
    return _run(_written(folder, {alert.name: alert}, cases))


def survivors(folder: Path, changed: Mapping[str, Alert], cases: Sequence[Case]) -> set[str]:
    """Names of the changed alerts in which the cases find nothing wrong."""
    left = dict(changed)
    # one by one, those of whole days last: most are told apart by the first few
    for case in sorted(cases, key=lambda case: case.every in ("5m", "10m")):
        found = _run(_written(folder, left, [case])) if left else ""
        failed = set(re.findall(r"alertname: (\S+), time", found))
        left = {name: alert for name, alert in left.items() if name not in failed}
    return set(left)


def told(folder: Path, rule: Json, case: Case, labels: Labels, annotations: Json) -> str:
    """Try what a rule tells at the case's time; what promtool finds wrong."""
    test = _test([rule["alert"]], case)
    expected = {"exp_labels": labels | rule["labels"], "exp_annotations": annotations}
    test["alert_rule_test"][0]["exp_alerts"] = [expected]
    rules = _rules(folder, [rule])
    return _run([_saved(folder / "told.json", {"rule_files": [str(rules)], "tests": [test]})])


def checked(rules: Path) -> str:
    """What promtool finds wrong with a rule file."""
    return _promtool("check", "rules", str(rules))


def _run(files: Sequence[Path]) -> str:
    return _promtool("test", "rules", *map(str, files))


def _promtool(*arguments: str) -> str:
    command = [require("promtool"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def _written(folder: Path, alerts: Mapping[str, Alert], cases: Sequence[Case]) -> list[Path]:
    rules = _rules(folder, [_bare(name, alert) for name, alert in alerts.items()])
    return list(_files(folder, rules, list(alerts), cases))


def _bare(name: str, alert: Alert) -> Json:
    """A rule of an alert without annotations, which promtool would compare each time."""
    times = {"for": alert.wait, "keep_firing_for": alert.keep}
    given = {key: time for key, time in times.items() if time}
    return {"alert": name, "expr": alert.expr, **given}


def _rules(folder: Path, rules: Sequence[Json]) -> Path:
    return _saved(folder / "rules.json", {"groups": [{"name": "g", "rules": list(rules)}]})


def _saved(path: Path, content: Json) -> Path:
    # JSON is YAML
    path.write_text(json.dumps(content))
    return path


def _files(
    folder: Path, rules: Path, names: Sequence[str], cases: Sequence[Case]
) -> Iterator[Path]:
    ordered = sorted(cases, key=lambda case: case.every)
    for every, some in groupby(ordered, lambda case: case.every):
        head = {"rule_files": [str(rules)], "evaluation_interval": every}
        tests = [_test(names, case) for case in some]
        yield _saved(folder / f"every-{every}.json", {**head, "tests": tests})


def _test(names: Sequence[str], case: Case) -> Json:
    series = [{"series": name, "values": text} for name, text in case.series.items()]
    expected = [
        {
            "eval_time": time,
            "alertname": name,
            "exp_alerts": [{"exp_labels": labels} for labels in firing],
        }
        for name in names
        for time, firing in case.fires.items()
    ]
    return {
        "name": case.says,
        "interval": case.every,
        "input_series": series,
        "alert_rule_test": expected,
    }


def recorded(
    folder: Path,
    records: Mapping[str, str],
    series: Mapping[str, str],
    samples: Mapping[str, float],
) -> str:
    """Record what ``records`` say; what differs from these samples ten minutes later."""
    rules = _rules(folder, [{"record": name, "expr": expr} for name, expr in records.items()])
    asked = [
        {
            "expr": name,
            "eval_time": "10m",
            "exp_samples": [
                {"labels": sample, "value": value}
                for sample, value in samples.items()
                if sample.partition("{")[0] == name
            ],
        }
        for name in records
    ]
    given = [{"series": name, "values": text} for name, text in series.items()]
    test = {"interval": "1m", "input_series": given, "promql_expr_test": asked}
    return _run([_saved(folder / "recorded.json", {"rule_files": [str(rules)], "tests": [test]})])
