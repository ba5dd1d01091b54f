"""Reports of sections: kept in the store before they are answered, with an index in memory.

`runs/ID/sections/{z:06d}/{version:04d}.json` holds a section as it was reported; a section that was
imaged again gets the next version. `runs/ID/sections/end.json` says that no more will come. All of
them are written by put-if-absent, so whatever is reported twice, at once or after a kill, is there
once. The store is listed when a run is loaded, not at every look.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from happyneurons.errors import ConflictError, PreconditionError, UserError
from happyneurons.orchestrator.runlog import now, run_folder
from happyneurons.store.documents import Store, canonical_json

READERS = 16


@dataclass(frozen=True)
class Waiting:
    """A section that is in no batch yet."""

    z: int
    version: int
    reported: float


@dataclass(frozen=True)
class _Known:
    digest: str
    """Of everything reported but the time of imaging."""
    acquired: float
    reported: float


class Reports:
    """The reports of one open run. Thread-safe; loaded from the store when it is first used."""

    def __init__(self, store: Store, run_id: str) -> None:
        self._store, self._run_id, self._folder = store, run_id, f"{run_folder(run_id)}/sections"
        self._lock = threading.RLock()
        self._loaded = False
        self._ended = False
        self._known: dict[int, list[_Known]] = {}
        self._waiting: dict[int, Waiting] = {}
        self._voxel_nm: tuple[float, float] | None = None

    # --- from the store --------------------------------------------------------------------------

    def reload(self) -> None:
        """Take over what is in the store and not known yet. Raises StoreError."""
        with self._lock:
            wanted = []
            for path in self._store.list(self._folder):
                z, _, version = path.removesuffix(".json").removeprefix(f"{self._folder}/").partition("/")
                if z == "end":
                    self._ended = True
                elif int(version) > len(self._known.get(int(z), ())):
                    wanted.append((int(z), int(version)))
            found = self.documents(sorted(wanted))
            for document in sorted(found, key=lambda d: (d["version"] > 1, d["version"], d["reported"], d["z"])):
                self._take(document)
            self._waiting = dict(sorted(self._waiting.items(), key=lambda item: (item[1].reported, item[0])))
            self._loaded = True

    def documents(self, sections: Iterable[tuple[int, int]]) -> list[dict[str, Any]]:
        """Reports by (z, version), in that order."""
        with ThreadPoolExecutor(READERS) as pool:
            return list(pool.map(lambda s: self._store.get_json(self._path(*s)), sections))

    def _path(self, z: int, version: int) -> str:
        return f"{self._folder}/{z:06d}/{version:04d}.json"

    def _load(self) -> None:
        if not self._loaded:
            self.reload()

    def _take(self, document: Mapping[str, Any]) -> None:
        """Put a report into the index. Versions of a section come in order."""
        z, reported = int(document["z"]), float(document["reported"])
        versions = self._known.setdefault(z, [])
        versions.append(_Known(_digest(document), float(document["acquired"]), reported))
        # Imaged again before its batch was opened: it keeps its turn.
        before = self._waiting.get(z)
        self._waiting[z] = Waiting(z, len(versions), before.reported if before else reported)
        self._voxel_nm = self._voxel_nm or (float(document["pixel_size_nm"]), float(document["thickness_nm"]))

    # --- what comes in ---------------------------------------------------------------------------

    def report(self, section: Mapping[str, Any], imaged_again: bool, refusal: str = "") -> tuple[int, bool]:
        """Keep a report; returns its version, and whether it was known.

        section: z, pixel_size_nm, thickness_nm, tiles in a fixed order, acquired (seconds since 1970 or
        0). refusal: why new sections are not taken; known ones are. Raises ConflictError,
        PreconditionError, UserError, StoreError.
        """
        z = int(section["z"])
        with self._lock:
            self._load()
            while True:
                versions = self._known.get(z, [])
                version = self._find(versions, section, imaged_again)
                if version:
                    return version, True
                if self._ended or refusal:
                    raise PreconditionError(refusal or f"run {self._run_id}: its acquisition has ended")
                self._check_voxel(section)
                if versions and not imaged_again:
                    raise ConflictError(
                        f"section {z} was reported with other tiles; if it was imaged again, say so (imaged_again)"
                    )
                document = {**section, "version": len(versions) + 1, "reported": now()}
                if self._store.create_json(self._path(z, document["version"]), document):
                    self._take(document)
                    return int(document["version"]), False
                self._take(self._store.get_json(self._path(z, document["version"])))  # another orchestrator's

    def end(self, refusal: str = "") -> None:
        """No more sections will come; may be said again. Raises PreconditionError, StoreError."""
        with self._lock:
            self._load()
            if self._ended:
                return
            if refusal:
                raise PreconditionError(refusal)
            self._store.create_json(f"{self._folder}/end.json", {"time": now()})
            self._ended = True

    @staticmethod
    def _find(versions: list[_Known], section: Mapping[str, Any], imaged_again: bool) -> int:
        """Number of the equal report, 0 if there is none."""
        digest = _digest(section)
        for number in range(len(versions), 0, -1):
            known = versions[number - 1]
            if known.digest == digest and (not imaged_again or known.acquired == section["acquired"]):
                return number
        return 0

    def _check_voxel(self, section: Mapping[str, Any]) -> None:
        if self._voxel_nm is None:
            return
        for name, before in zip(("pixel_size_nm", "thickness_nm"), self._voxel_nm, strict=True):
            if section[name] != before:
                expected = f"{before:g}, as in the sections before"
                raise UserError(
                    f"section {section['z']}: {name} is {section[name]:g}, expected {expected}",
                    [(f"section.{name}", f"expected {expected}")],
                )

    # --- what is known ---------------------------------------------------------------------------

    @property
    def ended(self) -> bool:
        with self._lock:
            self._load()
            return self._ended

    def waiting(self, batched: Mapping[int, int]) -> list[Waiting]:
        """Sections in no batch, in the order of their arrival. batched: z → latest version in a batch."""
        with self._lock:
            self._load()
            for z in [z for z, waiting in self._waiting.items() if waiting.version <= batched.get(z, 0)]:
                del self._waiting[z]
            return list(self._waiting.values())

    def numbers(self) -> list[int]:
        """The sections that were reported, ascending."""
        with self._lock:
            self._load()
            return sorted(self._known)

    def count(self) -> int:
        """Sections that were reported, each counted once."""
        with self._lock:
            self._load()
            return len(self._known)

    def imaged_again(self) -> int:
        """Reports beyond the first one of each section."""
        with self._lock:
            self._load()
            return sum(len(versions) - 1 for versions in self._known.values())

    def since(self, time: float) -> int:
        """Reports that came at a time or after it."""
        with self._lock:
            self._load()
            return sum(known.reported >= time for versions in self._known.values() for known in versions)


def _digest(section: Mapping[str, Any]) -> str:
    content = {key: section[key] for key in ("z", "pixel_size_nm", "thickness_nm", "tiles")}
    return hashlib.sha256(canonical_json(content)).hexdigest()
