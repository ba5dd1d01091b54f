"""How tiles get to where the compute nodes see them: they are there already, or are copied into the store.

Files are moved under names that hold their content's digest (`{z:06d}/{name}.{sha256[:16]}{suffix}`),
so that a section photographed again never changes a file that a report has named.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from google.protobuf import json_format

from happyneurons.acquisition.watch_layouts import file_stamp
from happyneurons.errors import StoreAccessError, StoreError, TaskError
from happyneurons.store.documents import Store, normalize_uri
from happyneurons.v1 import acquisition_pb2

LONGEST_PAUSE_S = 60.0
COPIES = 3
"""Attempts at a copy that does not come out as it should."""


@dataclass(frozen=True)
class Cargo:
    """A verified section on its way to being reported. `section` names the tiles where they will be.

    files: each tile's own file, in the order of section.tiles, with its `file_stamp` while it was verified.
    """

    section: acquisition_pb2.Section
    files: tuple[tuple[Path, str], ...]
    signature: str
    completed_at: float
    size_bytes: int

    @property
    def z(self) -> int:
        return int(self.section.z)

    @cached_property
    def digest(self) -> str:
        """Stands for what is reported; not for the time, so that touching a file makes nothing new of it."""
        section = acquisition_pb2.Section()
        section.CopyFrom(self.section)
        section.ClearField("acquire_time")
        return hashlib.sha256(section.SerializeToString(deterministic=True)).hexdigest()

    def changed_file(self) -> Path | None:
        """A file that is not what was verified any more; not one that is gone."""
        return next((path for path, stamp in self.files if file_stamp(path) not in (stamp, "")), None)

    def to_json(self) -> dict[str, Any]:
        return {
            "section": json_format.MessageToDict(self.section), "signature": self.signature,
            "files": [[str(path), stamp] for path, stamp in self.files],
            "completed_at": self.completed_at, "size_bytes": self.size_bytes,
        }  # fmt: skip

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Cargo:
        section = json_format.Parse(json.dumps(value["section"]), acquisition_pb2.Section())
        files = tuple((Path(path), str(stamp)) for path, stamp in value["files"])
        return cls(section, files, value["signature"], value["completed_at"], value["size_bytes"])


@dataclass(frozen=True)
class Arrival:
    """A section that has arrived, or (problem) has to be looked at again."""

    cargo: Cargo
    problem: str = ""


class Mover(Protocol):
    """Takes verified sections and gives them back once compute nodes see them. Never blocks for long."""

    in_place: bool
    """Compute nodes see the microscope's own files, which may still change."""

    def uri(self, z: int, file: Path, sha256: str) -> str:
        """Where a file will be seen."""
        ...

    def begin(self, cargo: Cargo) -> None: ...

    def poll(self) -> list[Arrival]: ...

    def sections(self) -> set[int]:
        """Those begun that have not come back; of an earlier watcher, too."""
        ...


def moved_name(z: int, file: Path, sha256: str) -> str:
    """Name of a moved tile below the target; the same in a path and in a URI."""
    stem = re.sub(r"[^A-Za-z0-9._-]", "_", file.stem)
    return f"{z:06d}/{stem}.{sha256[:16]}{file.suffix.lower()}"


class Backoff:
    """Pauses that double. `due` says whether it is time to try again."""

    def __init__(self, first_s: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._first_s, self._clock = first_s, clock
        self._pause_s, self._at = first_s, 0.0
        self.failing = False

    @property
    def due(self) -> bool:
        return not self.failing or self._clock() >= self._at

    def failed(self, at_least_s: float = 0.0) -> None:
        self._at = self._clock() + max(self._pause_s, at_least_s)
        self._pause_s, self.failing = min(2 * self._pause_s, LONGEST_PAUSE_S), True

    def succeeded(self) -> bool:
        """True if this ends a row of failures."""
        was, self.failing, self._pause_s = self.failing, False, self._first_s
        return was


class InPlace:
    """Tiles stay where they are: compute nodes see the microscope's folder; below `tiles_at`, if that is another
    URI there than here."""

    in_place = True

    def __init__(self, folder: Path, tiles_at: str | None = None) -> None:
        self._folder, self._tiles_at = folder, normalize_uri(tiles_at or str(folder))
        self._arrived: list[Arrival] = []

    def uri(self, z: int, file: Path, sha256: str) -> str:
        return f"{self._tiles_at}/{quote(file.relative_to(self._folder).as_posix())}"

    def begin(self, cargo: Cargo) -> None:
        self._arrived.append(Arrival(cargo))

    def poll(self) -> list[Arrival]:
        arrived, self._arrived = self._arrived, []
        return arrived

    def sections(self) -> set[int]:
        return {arrival.cargo.z for arrival in self._arrived}


class CopyToStore:
    """Copies tiles below a store URI, reads each copy back, and compares. One section a poll.

    A store that is away or full is tried again and again; `tell` says so once.
    """

    in_place = False

    def __init__(self, uri: str, tell: Callable[[str], None], backoff: Backoff | None = None) -> None:
        self._store, self._tell, self._backoff = Store(uri), tell, backoff or Backoff()
        self._store.check_writable()
        self._queue: deque[Cargo] = deque()
        self._failures: dict[str, int] = {}

    def uri(self, z: int, file: Path, sha256: str) -> str:
        return self._store.url(moved_name(z, file, sha256))

    def begin(self, cargo: Cargo) -> None:
        self._queue.append(cargo)

    def sections(self) -> set[int]:
        return {cargo.z for cargo in self._queue}

    def poll(self) -> list[Arrival]:
        if not self._queue or not self._backoff.due:
            return []
        cargo = self._queue[0]
        problem = ""
        try:
            for (file, _), tile in zip(cargo.files, cargo.section.tiles, strict=True):
                self._copy(file, cargo.z, tile.sha256)
        except TaskError as error:
            self._failures[cargo.digest] = self._failures.get(cargo.digest, 0) + 1
            if cargo.changed_file() is None and self._failures[cargo.digest] < COPIES:
                return []
            problem = str(error)
        except (StoreError, StoreAccessError) as error:
            if not self._backoff.failing:
                self._tell(f"section {cargo.z} cannot be copied ({error}); trying again and again")
            self._backoff.failed()
            return []
        if self._backoff.succeeded():
            self._tell("copying goes on")
        self._failures.pop(cargo.digest, None)
        self._queue.popleft()
        return [Arrival(cargo, problem)]

    def _copy(self, file: Path, z: int, sha256: str) -> None:
        name = moved_name(z, file, sha256)
        if self._store.exists(name) and self._digest(name) == sha256:
            return
        try:
            self._store.put_file(name, file)
        except OSError as error:
            raise TaskError(f"{file} cannot be read any more: {error.strerror or error}") from None
        if self._digest(name) != sha256:
            self._store.delete(name)
            raise TaskError(f"{file} changed while it was copied, or its copy in {self._store.uri} is damaged")

    def _digest(self, name: str) -> str:
        digest = hashlib.sha256()
        for piece in self._store.pieces(name):
            digest.update(piece)
        return digest.hexdigest()
