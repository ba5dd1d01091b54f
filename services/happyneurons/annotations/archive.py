"""Annotation files as WEBKNOSSOS gives them: an NML, or a zip with an NML and a zip for each volume layer.

Zips come from outside: names that lead out of the folder, links, encryption, and contents beyond a limit
are refused before anything is written.
"""

from __future__ import annotations

import hashlib
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from happyneurons.annotations.nml import Nml, VolumeEntry, parse_nml
from happyneurons.errors import NotFoundError, UserError
from happyneurons.store.documents import file_at, local_path

MAX_FILES = 2_000_000
MAX_NML_BYTES = 2 << 30
_ZIP = b"PK"


class AnnotationFile:
    """An annotation on a file system or an object store; a remote one is fetched into `scratch`.

    Raises UserError if it is none.
    """

    def __init__(self, uri: str, scratch: Path, max_bytes: int) -> None:
        self.uri, self._max_bytes = uri, max_bytes
        self._path = _fetched(uri, scratch)
        with self._path.open("rb") as file:
            self._zipped = file.read(2) == _ZIP
        self.nml: Nml = parse_nml(self._nml_bytes(), uri)

    def _nml_bytes(self) -> bytes:
        if not self._zipped:
            size = self._path.stat().st_size
            if size > MAX_NML_BYTES:
                raise UserError(f"{self.uri}: {size} bytes are too many for an NML (at most {MAX_NML_BYTES})")
            return self._path.read_bytes()
        with opened_zip(self._path, self.uri) as archive:
            found = [e for e in archive.infolist() if e.filename.endswith(".nml")]
            if len(found) != 1:
                raise UserError(
                    f"{self.uri}: expected a zip with one NML, as WEBKNOSSOS gives it; this one has {len(found)}"
                    " (of a project's zip, give each annotation's by itself)"
                )
            if found[0].file_size > MAX_NML_BYTES:
                raise UserError(f"{self.uri}: its NML has {found[0].file_size} bytes (at most {MAX_NML_BYTES})")
            return archive.read(found[0])

    def has_data(self, volume: VolumeEntry) -> bool:
        """Whether the layer's data came with the annotation (perhaps nothing was painted)."""
        if not self._zipped or not volume.location:
            return False
        with opened_zip(self._path, self.uri) as archive:
            return volume.location in archive.namelist()

    def unpack(self, volume: VolumeEntry, folder: Path) -> None:
        """Files of a volume layer into a new folder. Raises UserError if the zip is broken or not to be trusted."""
        inner = folder.with_name(f"{folder.name}.zip")
        with opened_zip(self._path, self.uri) as archive:
            entry = archive.getinfo(volume.location)
            if entry.file_size > self._max_bytes:
                raise self._too_large(volume.location, entry.file_size)
            with archive.open(entry) as source, inner.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
        where = f"{self.uri}, {volume.location}"
        with opened_zip(inner, where) as archive:
            entries = archive.infolist()
            total = sum(e.file_size for e in entries)
            if total > self._max_bytes or len(entries) > MAX_FILES:
                raise self._too_large(volume.location, total, len(entries))
            folder.mkdir(parents=True)
            for entry in entries:
                path = folder / _safe(entry, where)
                if entry.is_dir():
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                if path.exists():
                    raise UserError(f"{where}: it has {entry.filename!r} twice")
                # A zip that lies about sizes gives no more than it says, then its checksum is wrong.
                with archive.open(entry) as source, path.open("xb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
        inner.unlink()

    def _too_large(self, name: str, size: int, files: int = 1) -> UserError:
        return UserError(
            f"{self.uri}: {name} would unpack to {size} bytes in {files} files, more than {self._max_bytes}; if it is "
            "to be trusted, raise params.max_unpacked_gb"
        )


@contextmanager
def opened_zip(path: Path, where: str) -> Iterator[zipfile.ZipFile]:
    """A zip, whatever is wrong with it becoming a UserError."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{where}: the zip is damaged or cut off ({text}); download it again") from None


def _safe(entry: zipfile.ZipInfo, where: str) -> PurePosixPath:
    """The entry's path below the folder. Raises UserError if it could lead elsewhere."""
    path = PurePosixPath(entry.filename)
    if path.is_absolute() or ".." in path.parts or "\\" in entry.filename or ":" in path.parts[0]:
        raise UserError(f"{where}: the name {entry.filename!r} leads out of the folder; nothing was unpacked")
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise UserError(f"{where}: {entry.filename!r} is a link; nothing of it was followed")
    return path


def _fetched(uri: str, scratch: Path) -> Path:
    """The file on this machine. Raises UserError if there is none."""
    path = local_path(uri)
    if path is not None:
        if not path.is_file():
            raise _missing(uri, f"file {path}")
        return path
    target = scratch / "annotation"
    with target.open("wb") as file:
        file.writelines(_pieces(uri))
    return target


def _pieces(uri: str) -> Iterator[bytes]:
    """The bytes of a file, piece by piece. Raises UserError if it is not there."""
    store, name = file_at(uri)
    try:
        yield from store.pieces(name)
    except NotFoundError:
        raise _missing(uri, "such file") from None


def _missing(uri: str, what: str) -> UserError:
    return UserError(f"{uri}: there is no {what}; put the annotation's zip or NML there, then try again")


def content_digest(uri: str) -> str:
    """sha256 of an annotation's bytes: it stands for them in a job's key. Raises UserError if it is not there."""
    digest = hashlib.sha256()
    path = local_path(uri)
    if path is not None and not path.is_file():
        raise _missing(uri, f"file {path}")
    for piece in _pieces(uri):
        digest.update(piece)
    return digest.hexdigest()
