"""The images that the cluster's tests run, built by buildah from the project's own Dockerfiles.

No registry is asked: the base is made with debootstrap. Base, layers and archives are kept under
``build/images``, so that only what changed is built again. What pip needs on this machine to reach
its index (`PIP_CERT`, `PIP_FIND_LINKS`) is lent to the build and stays out of the image.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.helm.cluster.figures import measured, timed

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "build" / "images"

BASE = "localhost/base:bookworm"
FORCEGAUGE = "localhost/forcegauge"
OLD, NEW = f"{FORCEGAUGE}:0.1.0", f"{FORCEGAUGE}:0.1.1"
REDIS = "localhost/redis:7.0"


def archives() -> list[Path]:
    """Archives of all images, ready to be loaded into a node."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    if not _id(BASE):
        with timed("base image"):
            _make_base()
    with timed("image of forcegauge"):
        # the index that pip asks anyway: with a find-links folder it may have a build for CPUs
        _build(OLD, ROOT / "helm/images/cpu/Dockerfile", ROOT, "--build-arg=TORCH_INDEX=")
    with timed("image of Redis"):
        _build(REDIS, Path(__file__).with_name("redis.Dockerfile"), Path(__file__).parent)
    with timed("archives of the images"):
        return [_archive(image) for image in (OLD, REDIS)]


def _buildah(*arguments: str) -> str:
    place = ("--root", str(FOLDER / "storage"), "--runroot", str(FOLDER / "run"))
    # a mount that stays would keep the folder from being removed
    storage = ("--storage-driver=overlay", "--storage-opt=overlay.skip_mount_home=true")
    done = subprocess.run(
        ["buildah", *place, *storage, *arguments],
        env={**os.environ, "BUILDAH_ISOLATION": "chroot"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"buildah {arguments[0]}: {done.stdout[-4000:]}")
    return done.stdout.strip()


def _id(image: str) -> str:
    return _buildah("images", "--quiet", "--no-trunc", "--filter", f"reference={image}")


def _make_base() -> None:
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        wanted = ("--variant=minbase", "--include=python3,python3-venv", "bookworm")
        subprocess.run(["debootstrap", *wanted, folder], check=True, stdout=subprocess.DEVNULL)
        for cache in ("var/cache/apt", "var/lib/apt/lists"):
            shutil.rmtree(Path(folder, cache))
        Path(folder).chmod(0o755)
        container = _buildah("from", "scratch")
        _buildah("add", "--quiet", container, folder)
        _buildah("commit", "--quiet", "--rm", container, BASE)


def _build(image: str, file: Path, context: Path, *more: str) -> None:
    base = f"--build-arg=BASE={BASE}"
    options = ("--layers", "--network=host", base, *_lent(), *more)
    _buildah("bud", *options, f"--file={file}", f"--tag={image}", str(context))


def _lent() -> Iterator[str]:
    """Options that lend the build what pip needs here."""
    known = {"cert": os.environ.get("PIP_CERT"), "find-links": os.environ.get("PIP_FIND_LINKS")}
    given = {name: path for name, path in known.items() if path}
    config = FOLDER / "pip.conf"
    config.write_text("".join(["[global]\n", *(f"{k} = {v}\n" for k, v in given.items())]))
    yield f"--volume={config}:/etc/pip.conf:ro"
    for path in given.values():
        if Path(path).exists():
            yield f"--volume={path}:{path}:ro"


def _archive(image: str) -> Path:
    """The image as a docker-archive; written again only when it changed."""
    name = image.removeprefix("localhost/").replace(":", "-")
    archive, mark = FOLDER / f"{name}.tar", FOLDER / f"{name}.id"
    if not archive.exists() or not mark.exists() or mark.read_text() != _id(image):
        archive.unlink(missing_ok=True)
        _buildah("push", "--quiet", image, f"docker-archive:{archive}:{image}")
        mark.write_text(_id(image))
    measured(f"size of {name}, MB", archive.stat().st_size / 1e6)
    return archive


if __name__ == "__main__":
    if shutil.which("buildah") is None:
        sys.exit("buildah is missing: apt-get install buildah debootstrap")
    archives()
