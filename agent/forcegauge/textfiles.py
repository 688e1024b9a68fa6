"""Text files that people hand in or get: read line by line with clear errors, written whole."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from forcegauge.errors import InputError, RunError

_BOMS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def read_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Line number (from 1) and text of each line with its end; raises `InputError` if not UTF-8.

    Only a line feed ends a line: JSON strings and CSV cells may hold the other separators.
    """
    try:
        with Path(path).open("rb") as stream:
            for number, raw in enumerate(stream, start=1):
                yield number, _decoded(raw, path, number)
    except FileNotFoundError:
        raise InputError("no such file", fix="Check the path", file=path) from None
    except IsADirectoryError:
        raise InputError("is a folder, not a file", fix="Name a file in it", file=path) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot be read ({reason})", file=path) from None


def _decoded(raw: bytes, path: str | Path, number: int) -> str:
    encoding = _BOMS.get(raw[:2]) if number == 1 else None
    if encoding:
        fix = "Save the file as UTF-8"
        raise InputError(f"is {encoding}, not UTF-8", fix=fix, file=path, line=number)
    try:
        text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        problem = f"is not UTF-8 (byte {error.start + 1} of the line is 0x{raw[error.start]:02x})"
        raise InputError(problem, fix="Save the file as UTF-8", file=path, line=number) from None
    return text


def check_target(path: str | Path) -> None:
    """Raise `InputError` where no file can be written: a folder, or one that is not there."""
    target = Path(path)
    if target.is_dir():
        raise InputError("is a folder, not a file", fix="Name a file in it", file=path)
    if not target.parent.is_dir():
        raise InputError("its folder does not exist", fix=f"Make {target.parent} first", file=path)


def write_whole(path: str | Path, text: str | Iterable[str]) -> None:
    """Write UTF-8 text (or its parts one by one), whole or not at all; raises `InputError` as
    `check_target` does, and `RunError` when it fails for want of space or rights."""
    check_target(path)
    try:
        _replace(Path(path), [text] if isinstance(text, str) else text)
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror}).") from None


def _replace(target: Path, parts: Iterable[str]) -> None:
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:64]}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.writelines(part.encode() for part in parts)
        # mkstemp makes private files; a probe set is read by others like any file of its folder.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def first_line(error: Exception) -> str:
    """What an error says, on one line and without the final stop."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")
