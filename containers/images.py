"""Builds the images: one for each stage and one for the control plane; and SIF files from them.

`make images`, `make sif` and `make sbom` call this; containers/README.md explains what comes out.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from families import HERE, ROOT, Family, family_of, load_families, lock_path
from sbom import document

CONTROL = "control"
BASE = "docker.io/library/python:3.11-slim-bookworm"
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
# Lent to a build where the building machine has them; nothing of them stays in an image.
SECRETS = {"pip_conf": Path("/etc/pip.conf"), "ca_bundle": Path("/etc/ssl/certs/ca-certificates.crt")}


class BuildError(Exception):
    """What cannot be built, and what to do."""


def say(text: str) -> None:
    print(f"→ {text}", flush=True)


def version() -> str:
    """The package's version."""
    match = re.search(r'__version__ = "(.+)"', (ROOT / "services/happyneurons/_version.py").read_text())
    assert match is not None
    return match.group(1)


def revision() -> str:
    """Commit of the working tree, with `-dirty` where it differs from it."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def committed() -> int:
    """When the working tree's commit was made: seconds since 1970, 0 where that is not known."""
    done = subprocess.run(["git", "-C", str(ROOT), "log", "-1", "--format=%ct"], capture_output=True, text=True)
    return int(done.stdout or 0)


class Engine:
    """docker, podman or buildah."""

    def __init__(self, program: str) -> None:
        self.program = program
        self.environment = dict(os.environ)
        own_settings = "CONTAINERS_CONF" in os.environ or Path("/etc/containers/containers.conf").exists()
        if program != "docker" and os.geteuid() == 0 and shutil.which("runc") and not own_settings:
            self.environment["CONTAINERS_CONF"] = str(HERE / "containers.conf")

    def run(self, *arguments: str, quiet: bool = False) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.program, *arguments], env=self.environment, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if quiet else None, stderr=subprocess.STDOUT if quiet else None,
        )  # fmt: skip

    def must(self, *arguments: str) -> str:
        """Run silently; the output. Raises BuildError with the end of what was printed."""
        done = self.run(*arguments, quiet=True)
        if done.returncode:
            raise BuildError(f"{self.program} {arguments[0]} failed:\n{done.stdout[-4000:]}")
        return done.stdout

    def has(self, image: str) -> bool:
        kind = ["inspect", "--type", "image"] if self.program == "buildah" else ["image", "inspect"]
        return self.run(*kind, image, quiet=True).returncode == 0

    def image_id(self, image: str) -> str:
        return self.must("image", "inspect", "--format", "{{.Id}}", image).strip()

    def base(self) -> None:
        """Make sure of the image that Dockerfile starts from: there, pulled, or made here."""
        if self.has(BASE) or self.run("pull", BASE, quiet=True).returncode == 0:
            return
        say(f"{BASE} cannot be pulled: made from Debian packages")
        tar = os.environ.get("HPN_BASE_TAR") or str(ROOT / "build/containers/base.tar")
        done = subprocess.run([str(HERE / "base-image"), self.program, tar], env=self.environment)
        if done.returncode:
            raise BuildError(f"there is no base image: let {self.program} reach a registry that has {BASE}")

    def build_family(self, family: Family, image: str) -> None:
        """Build the image of a whole family, or of the control plane."""
        arguments = {"PACKAGES": family.packages_from or family.name, "FAMILY": family.name, "VERSION": version()}
        options = ["--file", str(HERE / "Dockerfile"), "--target", "control" if family.name == CONTROL else "stage"]
        for name in PROXIES:
            if name in os.environ:
                options += ["--build-arg", name]
        for name, path in SECRETS.items():
            if path.exists():
                options += ["--secret", f"id={name},src={path}"]
        self._build(image, options, arguments, ROOT)
        self.name(image, image, family.name, family.stages, family.licenses)

    def name(self, image: str, of: str, name: str, stages: Sequence[str], licenses: str) -> None:
        """Make an image of another one (or of itself) that says what it is and offers these stages: a second."""
        arguments = {
            "IMAGE": of,
            "NAME": name,
            "STAGES": ",".join(stages),
            "LICENSES": licenses,
            "VERSION": version(),
            "REVISION": revision(),
        }
        options = ["--file", str(HERE / "Dockerfile.names")]
        if self.program != "docker":
            options += ["--no-cache", f"--timestamp={committed()}"]  # the same image is made, and known as the same
        self._build(image, options, arguments, HERE / "locks")

    def _build(self, image: str, options: Sequence[str], arguments: Mapping[str, str], context: Path) -> None:
        command = ["build", "--network=host", "--tag", image, *options]
        if self.program != "docker":
            command += ["--format=oci", "--layers"]
            command += ["--pull-never", "--isolation=chroot"] if self.program == "buildah" else ["--pull=never"]
        for name, value in arguments.items():
            command += ["--build-arg", f"{name}={value}"]
        self.must(*command, str(context))


def find_engine(wanted: str | None = None) -> Engine:
    """The engine asked for, or the first of docker (if its daemon answers), podman and buildah."""
    for program in [wanted] if wanted else ["docker", "podman", "buildah"]:
        if shutil.which(program) is None:
            continue
        engine = Engine(program)
        if program == "docker":
            engine.environment["DOCKER_BUILDKIT"] = "1"
            if engine.run("info", quiet=True).returncode:
                continue
        return engine
    raise BuildError(
        f"{wanted} does not answer" if wanted else "no docker, podman or buildah here that works: install podman"
    )


def image_name(prefix: str, name: str) -> str:
    return f"{prefix}/{name}:{version()}"


def wanted_families(names: Sequence[str]) -> list[Family]:
    """Families of stages (all: every family). Raises BuildError for a name that is neither stage nor family."""
    families = load_families()
    found = {}
    for name in names:
        if name not in families:
            try:
                name = family_of(name).name
            except LookupError as error:
                raise BuildError(str(error)) from None
        found[name] = families[name]
    return list(found.values()) if names else list(families.values())


def build_images(engine: Engine, names: Sequence[str], prefix: str) -> dict[str, str]:
    """Build images of stages and families (all, if none is named), and of the families they come from.

    Returns images by name.
    """
    families = wanted_families(names)
    engine.base()
    built = {}
    for family in families:
        begin = time.monotonic()
        built[family.name] = image_name(prefix, family.name)
        engine.build_family(family, built[family.name])
        say(f"{built[family.name]}: {time.monotonic() - begin:.0f} s")
        for stage in family.stages:
            if stage in names or family.name in names or not names:
                built[stage] = image_name(prefix, stage)
                engine.name(built[stage], built[family.name], stage, [stage], family.licenses)
                say(built[stage])
    return built


def build_sif(engine: Engine, names: Sequence[str], prefix: str, folder: Path) -> list[Path]:
    """One SIF for each family of the stages named, and a link to it for each stage.

    A SIF holds all of its layers, so that one for each stage would hold the same bytes again and again.
    """
    if engine.program == "buildah":
        raise BuildError("SIF files are made from images of docker or podman: install one of them")
    apptainer = next((p for p in ("apptainer", "singularity") if shutil.which(p)), str(HERE / "apptainer"))
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for family in wanted_families(names):
        if not names and family.name == CONTROL:
            continue
        image = image_name(prefix, family.name)
        engine.base()
        engine.build_family(family, image)
        sif, made_from = folder / f"{family.name}.sif", folder / f".{family.name}.image"
        identity = engine.image_id(image)
        if sif.exists() and made_from.exists() and made_from.read_text() == identity:
            say(f"{sif}: up to date")
        else:
            begin = time.monotonic()
            made_from.unlink(missing_ok=True)
            convert(engine, apptainer, image, sif)
            made_from.write_text(identity)
            say(f"{sif}: {sif.stat().st_size / 1e6:.0f} MB, {time.monotonic() - begin:.0f} s")
        for stage in family.stages:
            link = folder / f"{stage}.sif"
            link.unlink(missing_ok=True)
            link.symlink_to(sif.name)
        made.append(sif)
    return made


def convert(engine: Engine, apptainer: str, image: str, sif: Path) -> None:
    """One image → one SIF, which is there as a whole or not at all. Raises BuildError."""
    part = sif.with_name(f".{sif.name}.part")
    with tempfile.TemporaryDirectory(dir=sif.parent, prefix=".save-") as scratch:
        archive = Path(scratch) / "image.tar"
        kind = ["--format=docker-archive"] if engine.program == "podman" else []
        engine.must("save", *kind, "--output", str(archive), image)
        # Level 3 of zstd makes it in a third of gzip's time, and starts faster.
        command = [apptainer, "build", "--force", "--mksquashfs-args", "-comp zstd -Xcompression-level 3"]
        done = subprocess.run(
            [*command, str(part), f"docker-archive:{archive}"],
            env={**os.environ, "APPTAINER_TMPDIR": scratch, "SINGULARITY_TMPDIR": scratch}, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    if done.returncode:
        part.unlink(missing_ok=True)
        raise BuildError(f"{apptainer} build failed:\n{done.stdout[-4000:]}")
    part.rename(sif)


def write_sboms(names: Sequence[str], folder: Path) -> None:
    """The Python packages of families (all, and requirements.lock, if none is named), as this Python installs them."""
    locks = {family.name: ("container", lock_path(family.name)) for family in wanted_families(names)}
    if not names:
        locks["requirements"] = ("application", ROOT / "requirements.lock")
    folder.mkdir(parents=True, exist_ok=True)
    for name, (kind, lock) in locks.items():
        path = folder / f"{name}.cdx.json"
        path.write_text(document(name, version(), lock, kind=kind))
        say(str(path))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="containers/images.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("command", choices=["images", "sif", "sbom"])
    parser.add_argument("names", nargs="*", metavar="STAGE", help="stages or families [default: all]")
    parser.add_argument("--engine", choices=["docker", "podman", "buildah"], help="[default: the first that works]")
    parser.add_argument("--prefix", default="happyneurons", help="what image names begin with [default: %(default)s]")
    parser.add_argument("--folder", type=Path, help="of SIF or SBOM files [default: build/sif, build/sbom]")
    options = parser.parse_args(arguments)
    folder = options.folder or ROOT / "build" / options.command
    try:
        if options.command == "sbom":
            write_sboms(options.names, folder)
            return 0
        engine = find_engine(options.engine)
        say(f"{options.command} with {engine.program}, version {version()}, revision {revision()}")
        if options.command == "images":
            build_images(engine, options.names, options.prefix)
        else:
            build_sif(engine, options.names, options.prefix, folder)
    except BuildError as error:
        print(f"images: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
