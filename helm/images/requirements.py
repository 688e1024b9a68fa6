"""Prints what the monitor needs of other packages, from pyproject.toml: for the images' builds."""

import tomllib
from pathlib import Path

with Path("pyproject.toml").open("rb") as file:
    project = tomllib.load(file)["project"]
print(*project["dependencies"], *project["optional-dependencies"]["monitor"], sep="\n")  # noqa: T201
