"""The images, built by the real scripts once for all tests that run in them.

HPN_IMAGES_DIR keeps what takes long (base root file system, Apptainer, SIF files) for the next session; layers are
kept by podman itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from containers.images import ROOT, Engine, find_engine

NOBODY = "1234:1234"  # a user that no image knows


@dataclass
class Images:
    """Built images and SIF files."""

    folder: Path
    engine: Engine = field(default_factory=find_engine)
    built: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    _alone: bool = False

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        # What the scripts make where there is no registry, no Apptainer; kept between sessions.
        os.environ.setdefault("HPN_BASE_TAR", str(self.folder / "base.tar"))
        os.environ.setdefault("APPTAINER_ROOT", str(self.folder / "apptainer"))
        self.engine.environment |= {"HPN_BASE_TAR": os.environ["HPN_BASE_TAR"]}

    def _script(self, what: str, *arguments: str) -> str:
        command = [sys.executable, str(ROOT / "containers" / "images.py"), what, *arguments]
        begin = time.monotonic()
        with self.alone():
            done = subprocess.run(command, capture_output=True, text=True)
        names = [a for a in arguments if "/" not in a and not a.startswith("-")]
        self.seconds[" ".join([what, *names])] = round(time.monotonic() - begin, 1)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """No other test process builds meanwhile: it then finds what this one built.

        Who stops a container waits for it, too: podman holds its locks for minutes where it writes large layers, and
        passes no signal on.
        """
        if self._alone:
            yield
            return
        with (self.folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._alone = True
            try:
                yield
            finally:
                self._alone = False

    def build(self, *names: str) -> dict[str, str]:
        """Build images of stages and families in one go; the names of all there are by now."""
        printed = self._script("images", *names, "--engine", self.engine.program)
        self.built |= {name: image for image, name in re.findall(r"→ (\S+/([a-z-]+):[^\s:]+)", printed)}
        return self.built

    def image(self, name: str) -> str:
        """Name of the image of a stage or family, built by now."""
        return self.built.get(name) or self.build(name)[name]

    def sif(self, stage: str) -> Path:
        """The SIF file of a stage, built by now."""
        return self.sifs([stage]) / f"{stage}.sif"

    def sifs(self, stages: Sequence[str]) -> Path:
        """Folder with the SIF files of stages, built by now."""
        self._script("sif", *stages, "--engine", self.engine.program, "--folder", str(self.folder))
        return self.folder

    def inspect(self, image: str) -> dict[str, Any]:
        (document,) = json.loads(self.engine.must("image", "inspect", image))
        return dict(document)

    def command(self, image: str, arguments: Sequence[str], options: Sequence[str] = ()) -> list[str]:
        """Command that runs an image hardened: no user, nothing writable but /tmp."""
        hardened = ["--rm", "--read-only", "--tmpfs", "/tmp", "--user", NOBODY, "--network=host"]
        return [self.engine.program, "run", *hardened, *options, image, *arguments]

    def run(self, image: str, *arguments: str, options: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
        command = self.command(image, arguments, options)
        return subprocess.run(command, env=self.engine.environment, capture_output=True, text=True, timeout=300)


def site_options(*binds: object) -> list[str]:
    """Options of `hpn site init` for ranks that run in images here, with paths that they see."""
    variables = {"HPN_CONTAINER": apptainer(), "HPN_BINDS": " ".join(map(str, binds))}
    variables["APPTAINER_ROOT"] = os.environ["APPTAINER_ROOT"]
    return [word for name, value in variables.items() for word in ("--env", f"{name}={value}")]


def apptainer() -> str:
    """Apptainer or Singularity of this machine, else our way to it."""
    found = shutil.which("apptainer") or shutil.which("singularity")
    return found or str(ROOT / "containers" / "apptainer")
