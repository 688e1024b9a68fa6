"""A real one-node Kubernetes for the tests, and what they ask of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.helm.tools import program

Object = dict[str, Any]
T = TypeVar("T")

PATIENCE = 300.0
"""Seconds: a pod starts in ten on a free machine."""

RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}

PACKAGES = "containerd runc containernetworking-plugins nftables iptables conntrack iproute2"
"""Beside openssl, curl and xz-utils; buildah and debootstrap make the images."""


def script() -> str:
    """What starts clusters; without it the test is skipped, or fails where it is promised."""
    tools = os.environ.get("FORCEGAUGE_TEST_TOOLS")
    if not tools:
        pytest.skip("FORCEGAUGE_TEST_TOOLS names no folder with kube/cluster, which starts one")
    found = Path(tools) / "kube" / "cluster"
    done = subprocess.run([str(found), "check"], capture_output=True, text=True, check=False)
    missing = [name for name in ("buildah", "debootstrap") if shutil.which(name) is None]
    if done.returncode or missing:
        pytest.fail(
            f"{done.stderr.strip()} {missing}: apt-get install {PACKAGES} buildah debootstrap"
        )
    return str(found)


@dataclass(frozen=True)
class Cluster:
    """A running cluster; everything of it is in ``folder``."""

    folder: Path
    script: str

    @property
    def environment(self) -> dict[str, str]:
        """For programs that talk to it; their caches and settings are its own too."""
        own = {"KUBECONFIG": str(self.folder / "kubeconfig"), "HOME": str(self.folder)}
        return {**os.environ, **own}

    def run(self, *command: str, text: str | None = None, seconds: float = 900.0) -> str:
        """What a program prints; fails the test where it fails."""
        done = self.attempt(*command, text=text, seconds=seconds)
        if done.returncode:
            said = f"{done.stdout[-3000:]}{done.stderr[-3000:]}"
            pytest.fail(f"{Path(command[0]).name} {' '.join(command[1:])}: {said}")
        return done.stdout

    def attempt(
        self, *command: str, text: str | None = None, seconds: float = 900.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a program that may fail."""
        return subprocess.run(
            command,
            input=text,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def kubectl(self, *arguments: str, text: str | None = None) -> str:
        """What `kubectl` prints."""
        return self.run(program("kubectl"), *arguments, text=text)

    def get(self, *what: str) -> Any:
        """What `kubectl get` finds; of several the list of them."""
        found = json.loads(self.kubectl("get", *what, "-o", "json"))
        return found["items"] if found["kind"] == "List" else found

    def apply(self, *objects: Object, namespace: str = "default") -> None:
        """Create objects, or change them."""
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
        self.kubectl("apply", "-n", namespace, "-f", "-", text=text)

    def tool(self, name: str, *arguments: str) -> str:
        """Call the script that started it."""
        return self.run(self.script, name, str(self.folder), *arguments)

    def operator(self) -> None:
        """Run the Prometheus Operator with its kinds, where it does not run yet."""
        known = self.kubectl("get", "crds", "-o", "name")
        if "prometheuses.monitoring.coreos.com" not in known:
            self.tool("operator")

    def ctr(self, *arguments: str) -> str:
        """Call containerd's own client on the node."""
        place = ("-a", str(self.folder / "containerd.sock"), "-n", "k8s.io")
        return self.run("ctr", *place, *arguments)

    def keep_images(self) -> None:
        """Run the kubelet anew so that it removes no image, however full the disk is: there is no
        registry to fetch one from again."""
        (known,) = (
            line for line in (self.folder / "pids").read_text().splitlines() if "kubelet" in line
        )
        pid = known.split()[0]
        command = Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0").split("\0")
        with (self.folder / "kubelet.yaml").open("a") as settings:
            settings.write("imageGCHighThresholdPercent: 100\n")
        os.kill(int(pid), signal.SIGTERM)
        eventually(lambda: not _runs(pid), "the kubelet has ended", 30)
        start = 'cd "$0"; setsid "$@" >> kubelet.log 2>&1 < /dev/null & echo $!'
        began = self.run("sh", "-c", start, str(self.folder), *command).strip()
        pids = (self.folder / "pids").read_text().replace(known, f"{began} kubelet")
        (self.folder / "pids").write_text(pids)

    @contextmanager
    def namespace(self, name: str) -> Iterator[str]:
        """A namespace that enforces the restricted Pod Security Standard, until the block ends."""
        meta = {"name": name, "labels": RESTRICTED}
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": meta})
        yield name
        self.kubectl("delete", "namespace", name)
        self._empty_volumes(name)

    def volume(self, namespace: str, claim: str) -> Path:
        """The folder of a claim's volume, as the node sees it."""
        name = self.get("pvc", claim, "-n", namespace)["spec"]["volumeName"]
        return Path(self.get("pv", name)["spec"]["hostPath"]["path"])

    def _empty_volumes(self, namespace: str) -> None:
        """Make the volumes of a namespace that is gone free for another, their folders empty."""
        for volume in self.get("persistentvolumes"):
            if volume["spec"].get("claimRef", {}).get("namespace") == namespace:
                folder = Path(volume["spec"]["hostPath"]["path"])
                for each in folder.iterdir():
                    shutil.rmtree(each) if each.is_dir() else each.unlink()
                free = '{"spec": {"claimRef": null}}'
                self.kubectl("patch", "pv", volume["metadata"]["name"], "-p", free)

    def address(self, namespace: str, service: str) -> str:
        """``host:port`` of a Service's first port; the node, which is this machine, reaches it."""
        spec = self.get("service", service, "-n", namespace)["spec"]
        return f"{spec['clusterIP']}:{spec['ports'][0]['port']}"

    def pods(self, namespace: str, labels: Mapping[str, str]) -> list[Object]:
        """The pods with these labels that are not on their way out."""
        selector = ",".join(f"{name}={value}" for name, value in labels.items())
        found = self.get("pods", "-n", namespace, "-l", selector)
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]


def _runs(pid: str) -> bool:
    """Whether a process is there and more than a zombie, which has no command line."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except FileNotFoundError:
        return False


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """A cluster until the block ends, or this process does, however it ends."""
    made = Cluster(folder, script())
    # the read comes back when the pipe closes, which the death of this process does as well
    watch = ["sh", "-c", 'read -r _; "$0" down "$1"', made.script, str(folder)]
    with (folder / "down.log").open("wb") as log:
        keeper = subprocess.Popen(
            watch, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
        )
    try:
        made.tool("up")
        made.keep_images()
        yield made
    finally:
        assert keeper.stdin is not None
        keeper.stdin.close()
        ended = keeper.wait(timeout=120)
        assert ended == 0, (folder / "down.log").read_text()
        assert str(folder) not in Path("/proc/mounts").read_text(), "mounts are left behind"


def eventually(look: Callable[[], T], what: str, seconds: float = PATIENCE) -> T:
    """The first true answer; fails the test when none comes in time, and says of what."""
    end = time.monotonic() + seconds
    while not (answer := look()):
        if time.monotonic() > end:
            pytest.fail(f"not within {seconds:.0f} seconds: {what}")
        time.sleep(0.5)
    return answer


def ready(pod: Object) -> bool:
    """Whether all of a pod's containers are ready."""
    conditions: Sequence[Object] = pod["status"].get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
