"""Training examples of a preference or SFT dataset, in the shapes that TRL documents."""

from __future__ import annotations

import csv
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

from forcegauge.errors import InputError
from forcegauge.probes import ROLES, Prompt, unfit_text
from forcegauge.textfiles import first_line, read_lines

EXTRA_COLUMNS = (
    "chosen_rephrase",
    "rejected_rephrase",
    "chosen_offtopic",
    "rejected_offtopic",
    "unrelated",
)
"""Response types that a dataset may bring along as columns of their own."""

PARQUET_ROWS = 1024
"""Rows of a Parquet file that are held at once."""

_SHAPES = (
    "Columns are prompt, chosen and rejected; chosen and rejected with the prompt in both; "
    "prompt and completion; or messages"
)
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True)
class Pair:
    """One training example as the trainer has it: a prompt and its answers by response type."""

    id: str
    row: int
    """Place in the dataset, from 0, rows that are left out included."""
    prompt: Prompt
    responses: Mapping[str, str]

    @property
    def chosen(self) -> str:
        """The preferred answer, or the only one of an SFT example."""
        return self.responses["chosen"]

    @cached_property
    def prompt_key(self) -> str:
        """Text that is equal for equal prompts."""
        return json.dumps(self.prompt, sort_keys=True)


@dataclass(frozen=True)
class Pairs:
    """What a dataset holds: usable examples in its order, and why others were left out."""

    pairs: tuple[Pair, ...]
    rows: int
    """Number of all rows, usable or not."""
    skipped: Mapping[str, tuple[str, ...]]
    """Reason -> ids of the rows that have it."""


@dataclass(frozen=True)
class _Row:
    file: str
    number: int
    unit: str
    values: Mapping[str, Any]

    @property
    def id(self) -> str:
        return f"{self.unit}-{self.number}"

    def error(self, problem: str, field: str | None = None, fix: str = "") -> InputError:
        place = f"{self.file}, {self.unit} {self.number}"
        return InputError(problem, fix=fix, file=place, field=field)


class _UnusableError(Exception):
    """A row that a trainer may train on but that cannot be a probe."""


def read_pairs(source: str, *, split: str | None = None, subset: str | None = None) -> Pairs:
    """Read a JSONL, CSV or Parquet file, or a dataset by its Hub name or folder.

    `split` (default ``train``) and `subset` are for datasets only. Ids name the line of a text file
    or the row of a table, counted from 1. Raises `InputError` naming file, line or row, and field.
    """
    skipped: dict[str, list[str]] = {}

    def skip(reason: str, identity: str) -> None:
        skipped.setdefault(reason, []).append(identity)

    pairs = tuple(stream_pairs(source, split=split, subset=subset, skip=skip))
    if not pairs:
        why = next(iter(skipped), "")
        problem = f"no row can be used: in the first, {why}" if why else "holds no rows"
        raise InputError(problem, fix=_SHAPES, file=source)
    count = len(pairs) + sum(map(len, skipped.values()))
    return Pairs(pairs, count, {why: tuple(ids) for why, ids in skipped.items()})


def stream_pairs(
    source: str,
    *,
    split: str | None = None,
    subset: str | None = None,
    skip: Callable[[str, str], None],
) -> Iterator[Pair]:
    """As `read_pairs`, one example at a time and none of them kept.

    ``skip`` is called with the reason and the id of a row that is not usable.
    """
    for place, row in enumerate(_rows(source, split, subset)):
        try:
            pair = _pair(row, place)
        except _UnusableError as reason:
            skip(str(reason), row.id)
        else:
            yield pair


def is_dataset(source: str) -> bool:
    """Whether this names a dataset (a folder, or a name on the Hub) and not a file."""
    path = Path(source)
    return path.is_dir() or not (path.exists() or path.suffix.lower() in _READERS)


def _rows(source: str, split: str | None, subset: str | None) -> Iterator[_Row]:
    suffix = Path(source).suffix.lower()
    if is_dataset(source):
        return _dataset_rows(source, split or "train", subset)
    if suffix not in _READERS:
        fix = f"Use a file that ends in {', '.join(_READERS)}"
        raise InputError(f"unknown kind of file '{suffix}'", fix=fix, file=source)
    if split or subset:
        raise InputError("a file has no splits", fix="Leave out --split and --subset", file=source)
    return _READERS[suffix](source)


def _json_rows(source: str) -> Iterator[_Row]:
    for number, text in read_lines(source):
        if not text.strip():
            continue
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", None) or str(error)
            problem = f"bad JSON ({reason})"
            raise InputError(
                problem, fix="One JSON object a line", file=source, line=number
            ) from None
        if not isinstance(values, dict):
            fix = "Write one JSON object a line"
            raise InputError("is not a JSON object", fix=fix, file=source, line=number)
        yield _Row(source, number, "line", values)


def _csv_rows(source: str) -> Iterator[_Row]:
    reader = csv.reader((text for _, text in read_lines(source)), strict=True)
    try:
        header = next(reader, [])
        if len(set(header)) < len(header):
            raise InputError("two columns have the same name", file=source, line=1)
        line = reader.line_num + 1
        for cells in reader:
            if cells and len(cells) != len(header):
                problem = f"has {len(cells)} cells, the header has {len(header)}"
                raise InputError(problem, fix="Quote cells with commas", file=source, line=line)
            if cells:
                yield _Row(source, line, "line", dict(zip(header, cells, strict=True)))
            line = reader.line_num + 1
    except csv.Error as error:
        problem = f"bad CSV ({error})"
        raise InputError(problem, file=source, line=reader.line_num) from None


def _parquet_rows(source: str) -> Iterator[_Row]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        problem = "reading Parquet needs the package pyarrow"
        raise InputError(problem, fix="pip install datasets", file=source) from None
    try:
        with pq.ParquetFile(source) as table:
            batches = table.iter_batches(PARQUET_ROWS)
            rows = (values for batch in batches for values in batch.to_pylist())
            for number, values in enumerate(rows, start=1):
                yield _Row(source, number, "row", values)
    except FileNotFoundError:
        raise InputError("no such file", fix="Check the path", file=source) from None
    except (OSError, pa.ArrowException) as error:
        problem = f"cannot be read as Parquet ({first_line(error)})"
        raise InputError(problem, file=source) from None


def _dataset_rows(name: str, split: str, subset: str | None) -> Iterator[_Row]:
    if not (name and Path(name).is_dir()) and not _HUB_NAME.fullmatch(name):
        raise InputError("no such file", fix="Check the path", file=name)
    for number, values in enumerate(_loaded(name, split, subset), start=1):
        yield _Row(f"{name} {split}", number, "row", values)


@cache
def _loaded(name: str, split: str, subset: str | None) -> Any:
    """The dataset, which lies on disk and not in memory; it may be streamed more than once."""
    try:
        import datasets
    except ImportError:
        problem = "reading a dataset by its name needs the package datasets"
        raise InputError(problem, fix="pip install datasets", file=name) from None
    try:
        with _quiet_hub():
            return datasets.load_dataset(name, subset, split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        problem = f"cannot be loaded ({first_line(error)})"
        fix = "Check the name, the split and the network, or give a file"
        raise InputError(problem, fix=fix, file=name) from None


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """A Hub that cannot be reached is one line of ours, not one for each attempt."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


_READERS = {
    ".jsonl": _json_rows,
    ".ndjson": _json_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}


def _pair(row: _Row, index: int) -> Pair:
    if row.values.get("label") is False:
        raise _UnusableError("the answer is labelled as not preferred")
    prompt, responses = _prompt_and_answers(row)
    _check_fit("prompt", prompt if isinstance(prompt, str) else "".join(_contents(prompt)))
    for name, text in responses.items():
        _check_fit(name, text)
    if responses["chosen"] == responses.get("rejected"):
        raise _UnusableError("chosen and rejected are the same")
    return Pair(row.id, index, prompt, {**responses, **_extras(row)})


def _contents(prompt: tuple[Mapping[str, str], ...]) -> list[str]:
    return [message["content"] for message in prompt]


def _check_fit(name: str, text: str) -> None:
    if reason := unfit_text(text):
        raise _UnusableError(f"{name} {reason}")


def _prompt_and_answers(row: _Row) -> tuple[Prompt, dict[str, str]]:
    if "chosen" in row.values:
        return _preference(row)
    if "completion" in row.values:
        prompt, answer = _value(row, "prompt"), _value(row, "completion")
        _same_form(row, prompt, answer, "completion")
        return prompt, {"chosen": _answer(answer, "completion")}
    if "messages" in row.values:
        messages = _value(row, "messages")
        if isinstance(messages, str):
            raise row.error("is text", "messages", "Give a list of messages")
        return messages[:-1], {"chosen": _answer(messages[-1:], "messages")}
    columns = ", ".join(sorted(row.values)) or "none"
    raise row.error(
        f"has no chosen, completion or messages (its columns: {columns})", None, _SHAPES
    )


def _preference(row: _Row) -> tuple[Prompt, dict[str, str]]:
    chosen, rejected = _value(row, "chosen"), _value(row, "rejected")
    _same_form(row, chosen, rejected, "rejected")
    prompt = _value(row, "prompt") if row.values.get("prompt") is not None else None
    # A text prompt beside whole conversations only repeats what they begin with.
    if prompt is None or (isinstance(prompt, str) and not isinstance(chosen, str)):
        prompt = chosen[: _shared_length(chosen, rejected)]
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    _same_form(row, prompt, chosen, "chosen")
    return prompt, {
        "chosen": _answer(chosen, "chosen"),
        "rejected": _answer(rejected, "rejected"),
    }


def _shared_length(chosen: Prompt, rejected: Prompt) -> int:
    """Where an implicit prompt ends: as TRL cuts it, so that probes ask what is trained."""
    pairs = zip(chosen, rejected, strict=False)
    length = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    is_text = isinstance(chosen, str)
    return length - 1 if is_text and length and chosen[length - 1] == " " else length


def _same_form(row: _Row, one: Prompt, other: Prompt, field: str) -> None:
    if isinstance(one, str) != isinstance(other, str):
        kinds = ("text", "messages") if isinstance(other, str) else ("messages", "text")
        fix = "Give both as text or both as messages"
        raise row.error(f"is {kinds[0]} where the other column is {kinds[1]}", field, fix)


def _value(row: _Row, field: str) -> Prompt:
    if field not in row.values:
        raise row.error("is missing", field, _SHAPES)
    value = row.values[field]
    if value is None:
        raise _UnusableError(f"{field} is null")
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise row.error("is neither text nor a list of messages", field)
    return tuple(_message(row, message, field) for message in value)


def _message(row: _Row, message: Any, field: str) -> Mapping[str, str]:
    fix = f'A message is {{"role": ..., "content": ...}} with role {", ".join(ROLES)}'
    if not isinstance(message, dict) or not {"role", "content"} <= set(message):
        raise row.error("holds something that is not a message", field, fix)
    if message["role"] not in ROLES:
        raise row.error(f"unknown role {str(message['role'])[:40]!a}", field, fix)
    if not isinstance(message["content"], str) or message.get("tool_calls"):
        raise _UnusableError(f"{field} has a message that is not only text")
    _check_fit(f"a message of {field}", message["content"])
    return {"role": message["role"], "content": message["content"]}


def _answer(value: Prompt, field: str) -> str:
    if isinstance(value, str):
        return value
    if len(value) != 1 or value[0]["role"] != "assistant":
        raise _UnusableError(f"{field} does not end with one assistant message after the prompt")
    return value[0]["content"]


def _extras(row: _Row) -> dict[str, str]:
    given = [name for name in EXTRA_COLUMNS if row.values.get(name)]
    texts = {name: _answer(_value(row, name), name) for name in given}
    return {name: text for name, text in texts.items() if not unfit_text(text)}
