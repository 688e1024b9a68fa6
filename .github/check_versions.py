"""Fails unless a release's tag, the package and the chart's application have one version."""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]

project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
chart = (ROOT / "helm/forcegauge/Chart.yaml").read_text()
[app] = re.findall(r'^appVersion: "?([^"\s]+)"?$', chart, re.MULTILINE)
if not sys.argv[1] == f"v{project}" == f"v{app}":
    sys.exit(
        f"the tag is {sys.argv[1]}, pyproject.toml says {project}, the chart's appVersion {app}"
    )
