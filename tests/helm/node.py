"""Rendered containers as plain processes of this machine: what a node does, without containers.

Mounted paths lie in a folder, names of Services lead to loopback, and ports are free ones; all else
is as rendered: command, arguments, environment, configuration, probes.
"""

from __future__ import annotations

import base64
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from forcegauge_monitor.settings import PREFIX
from tests.helm.charts import Document, of_kind, pod_template
from tests.servers import START_SECONDS, fetch, free_port, require

ENTRYPOINTS = {"forcegauge": ["forcegauge"], "redis": ["redis-server"]}
"""Of the images, by a part of their names."""


class Node:
    """The pods of some manifests, one process for each."""

    def __init__(self, documents: Sequence[Document], folder: Path) -> None:
        self.documents = tuple(documents)
        self.folder = folder
        self.ports: dict[int, int] = {}

    def pod(self, component: str) -> Document:
        """The template of a component's pod."""
        made = (pod_template(each) for each in of_kind(self.documents, "Deployment", "StatefulSet"))
        label = "app.kubernetes.io/component"
        (found,) = (pod for pod in made if pod and pod["metadata"]["labels"][label] == component)
        return found

    def port(self, rendered: int) -> int:
        """The free port that stands for a rendered one."""
        return self.ports.setdefault(rendered, free_port())

    def data(self, kind: str, name: str) -> dict[str, str]:
        """What a ConfigMap or Secret holds."""
        (found,) = (
            each for each in of_kind(self.documents, kind) if each["metadata"]["name"] == name
        )
        if kind == "ConfigMap":
            return dict(found["data"])
        coded = found.get("data", {})
        decoded = {key: base64.b64decode(value).decode() for key, value in coded.items()}
        return {**decoded, **found.get("stringData", {})}

    def _all_places(self, pod: Document) -> dict[str, Path]:
        """A pod's own places, and those of others that it only names."""
        made = (pod_template(each) for each in of_kind(self.documents, "Deployment", "StatefulSet"))
        others = {
            path: place for each in made if each for path, place in self._places(each).items()
        }
        return {**others, **self._places(pod)}

    def _places(self, pod: Document) -> dict[str, Path]:
        (container,) = pod["spec"]["containers"]
        volumes = {each["name"]: each for each in pod["spec"].get("volumes", [])}
        component = pod["metadata"]["labels"]["app.kubernetes.io/component"]
        found = {}
        for mount in container.get("volumeMounts", []):
            volume = volumes.get(mount["name"], {})
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            place = self.folder / (claim or component) / (mount.get("subPath") or mount["name"])
            found[mount["mountPath"]] = place
        return found

    def _mount(self, pod: Document) -> None:
        """Write the files of ConfigMaps and Secrets that a pod mounts, and make its folders."""
        (container,) = pod["spec"]["containers"]
        volumes = {each["name"]: each for each in pod["spec"].get("volumes", [])}
        for mount in container.get("volumeMounts", []):
            place = self._places(pod)[mount["mountPath"]]
            place.mkdir(parents=True, exist_ok=True)
            for name, text in self._files(volumes.get(mount["name"], {})).items():
                (place / name).write_text(self.translated(text, pod))

    def _files(self, volume: Mapping[str, Any]) -> dict[str, str]:
        """Texts of a volume's files by their names."""
        if "projected" in volume:
            parts = [self._files({**each}) for each in volume["projected"]["sources"]]
            return {name: text for part in parts for name, text in part.items()}
        if "configMap" in volume:
            source = volume["configMap"]
            data = self.data("ConfigMap", source["name"])
        elif "secret" in volume:
            source = volume["secret"]
            data = self.data("Secret", source.get("secretName") or source["name"])
        else:
            return {}
        chosen = source.get("items") or [{"key": name, "path": name} for name in data]
        return {each["path"]: data[each["key"]] for each in chosen}

    def translated(self, text: str, pod: Document) -> str:
        """A rendered text with this machine's folders, names and ports."""
        services = [each["metadata"]["name"] for each in of_kind(self.documents, "Service")]
        names = "|".join(sorted(map(re.escape, services), key=len, reverse=True))
        text = re.sub(rf"(?<=[@/ ])({names})(\.[a-z.]+)?(?=:\d)", "127.0.0.1", text)
        text = re.sub(r"\b(6379|8790)\b", lambda each: str(self.port(int(each[0]))), text)
        places = {path: str(place) for path, place in self._all_places(pod).items()}
        paths = "|".join(sorted(map(re.escape, places), key=len, reverse=True))
        ends = r"(?=$|[/\s\"',:;)])"
        return re.sub(rf"(?<![\w./-])({paths}){ends}", lambda each: places[each[1]], text)

    def environment(self, component: str) -> dict[str, str]:
        """The variables of a component's container, what they refer to put in."""
        pod = self.pod(component)
        (container,) = pod["spec"]["containers"]
        found: dict[str, str] = {}
        for source in container.get("envFrom", []):
            ((kind, reference),) = ((k, v) for k, v in source.items() if k.endswith("Ref"))
            whole = {"configMapRef": "ConfigMap", "secretRef": "Secret"}[kind]
            found |= self.data(whole, reference["name"])
        for each in container.get("env", []):
            text = each["value"] if "value" in each else self._referred(each["valueFrom"], pod)
            found[each["name"]] = _expanded(text, found)
        return {name: self.translated(text, pod) for name, text in found.items()}

    def _referred(self, source: Mapping[str, Any], pod: Document) -> str:
        for kind, name in (("configMapKeyRef", "ConfigMap"), ("secretKeyRef", "Secret")):
            if kind in source:
                return self.data(name, source[kind]["name"])[source[kind]["key"]]
        path = source["fieldRef"]["fieldPath"]
        component = pod["metadata"]["labels"]["app.kubernetes.io/component"]
        return f"{component}-0" if path == "metadata.name" else str(path)

    def command(self, component: str) -> list[str]:
        """The words that start a component."""
        pod = self.pod(component)
        (container,) = pod["spec"]["containers"]
        image = container["image"].rpartition("/")[2]
        entry = next(words for part, words in ENTRYPOINTS.items() if part in image)
        words = [*container.get("command", entry), *container.get("args", [])]
        return self._words(component, words)

    def _words(self, component: str, words: Sequence[str]) -> list[str]:
        values = self.environment(component)
        pod = self.pod(component)
        return [self.translated(_expanded(word, values), pod) for word in words]

    @contextmanager
    def running(self, *components: str) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
        """Their processes, until the block ends; what they say goes to ``COMPONENT.log``."""
        with ExitStack() as stack:
            yield {name: stack.enter_context(self._process(name)) for name in components}

    @contextmanager
    def _process(self, component: str) -> Iterator[subprocess.Popen[bytes]]:
        self._mount(self.pod(component))
        with (self.folder / f"{component}.log").open("wb") as log:
            process = subprocess.Popen(
                self.command(component),
                cwd=self.folder,
                env=self._surroundings(component),
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            try:
                yield process
            finally:
                process.terminate()
                process.wait(timeout=START_SECONDS)

    def _surroundings(self, component: str) -> dict[str, str]:
        inherited = {name: text for name, text in os.environ.items() if not name.startswith(PREFIX)}
        path = f"{self._programs()}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        return {**inherited, **self.environment(component), "PATH": path}

    def _programs(self) -> Path:
        """A folder with Redis' programs that use our port where none is told."""
        folder = self.folder / "programs"
        folder.mkdir(exist_ok=True)
        port = self.port(6379)
        options = {"redis-server": f"--bind 127.0.0.1 --port {port}", "redis-cli": f"-p {port}"}
        for name, told in options.items():
            (folder / name).write_text(f'#!/bin/sh\nexec {require(name)} {told} "$@"\n')
            (folder / name).chmod(0o755)
        return folder

    def passes(self, component: str, probe: str) -> bool:
        """Whether a probe of a component's container (`liveness`, `readiness`) passes."""
        (container,) = self.pod(component)["spec"]["containers"]
        asked = container[f"{probe}Probe"]
        if "exec" in asked:
            words = self._words(component, asked["exec"]["command"])
            where = self._surroundings(component)
            done = subprocess.run(words, env=where, capture_output=True, check=False)
            return done.returncode == 0
        ports = {each["name"]: each["containerPort"] for each in container["ports"]}
        port = self.port(ports.get(asked["httpGet"]["port"], asked["httpGet"]["port"]))
        return fetch(f"http://127.0.0.1:{port}{asked['httpGet']['path']}")[0] == 200


def _expanded(text: str, values: Mapping[str, str]) -> str:
    """Kubernetes' own ``$(NAME)`` in commands and values."""
    return re.sub(r"\$\(([A-Za-z_]\w*)\)", lambda each: values.get(each[1], each[0]), text)
