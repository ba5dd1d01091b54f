"""Where a volume is: a folder or file on a file system or an object store, and what inside of it."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from happyneurons.errors import NotFoundError, UserError
from happyneurons.store.documents import Store, local_path, normalize_uri

PREFIXES = ("h5://", "precomputed://")


@dataclass(frozen=True)
class Location:
    """`URI` or `URI?INNER`: INNER is a dataset of an HDF5 file, a layer of a WEBKNOSSOS dataset, an array's path."""

    root: str
    """Absolute URI of the folder or file."""
    inner: str = ""

    @classmethod
    def parse(cls, uri: str) -> Location:
        """Raises UserError. Prefixes h5:// and precomputed:// say a format, no place."""
        for prefix in PREFIXES:
            uri = uri.removeprefix(prefix)
        root, _, inner = uri.partition("?")
        if not root:
            raise UserError(f"{uri!r}: write FOLDER, FILE or URI, and ?NAME for what is inside")
        inside(inner, f"{uri}: the name after ?")
        return cls(normalize_uri(root), inner.strip("/"))

    def __str__(self) -> str:
        return f"{self.root}?{self.inner}" if self.inner else self.root

    @property
    def path(self) -> Path | None:
        """The folder or file on this machine; None on an object store."""
        return local_path(self.root)

    @property
    def name(self) -> str:
        return self.root.rsplit("/", 1)[-1]

    def store(self) -> Store:
        """The folder as a store, to read from. Raises UserError if there is none: opening makes no folder."""
        path = self.path
        if path is not None and not path.is_dir():
            raise UserError(f"{self}: there is no folder {path}")
        return Store(self.root)

    def target(self) -> Store:
        """The folder as a store, to write to; it is made."""
        return Store(self.root)

    def holds_nothing(self) -> bool:
        """Whether there is no such folder, or nothing in it."""
        path = self.path
        if path is not None:
            return not path.exists() or (path.is_dir() and not any(path.iterdir()))
        return next(iter(Store(self.root).list("")), None) is None


def inside(path: str, what: str) -> str:
    """A relative path that stays below its folder, normalized. Raises UserError if it leads out of it."""
    plain = posixpath.normpath(path) if path else ""
    if "://" in path or plain.startswith(("/", "..")):
        raise UserError(f"{what}, {path!r}, leads out of the folder; give that place itself as the source")
    return plain.removeprefix("./")


def read_json(store: Store, path: str) -> Any | None:
    """A JSON document, None if there is none. Raises UserError if it is not JSON."""
    try:
        return store.get_json(path)
    except NotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{store.url(path)}: not JSON ({error})") from None


def absolute(uri: str) -> str:
    """A volume's URI independent of the working folder; a prefix that says its format stays. Raises UserError."""
    prefix = next((p for p in PREFIXES if uri.startswith(p)), "")
    location = Location.parse(uri)
    path = location.path
    root = str(path) if prefix == "h5://" and path is not None else location.root
    return f"{prefix}{root}" + (f"?{location.inner}" if location.inner else "")
