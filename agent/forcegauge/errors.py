"""What a user can mend: one line that names file, line, field and fix."""

from __future__ import annotations

from pathlib import Path


class InputError(Exception):
    """Input or usage that the user can correct. The command line prints it and exits with 2."""

    def __init__(
        self,
        problem: str,
        *,
        fix: str = "",
        file: str | Path | None = None,
        line: int | None = None,
        field: str | None = None,
    ) -> None:
        where = [str(file) if file is not None else "", f"line {line}" if line is not None else ""]
        place = ", ".join(part for part in where if part)
        subject = f"{field}: {problem}" if field else problem
        text = f"{place}: {subject}" if place else subject
        super().__init__(" ".join(f"{text}. {fix}".rstrip(". ").split()) + ".")


class RunError(Exception):
    """Something failed although the input was right; the command line exits with 1."""
