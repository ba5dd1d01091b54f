"""The files of an artifact as browsers are to find them.

CloudVolume keeps compressed chunks as `NAME.gz` in folders, and with a header `Content-Encoding` in object
stores. Readers ask for NAME: object stores get the compressed bytes with the header, folders of a web server,
which cannot be told of headers, the plain ones.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from happyneurons.errors import UserError
from happyneurons.store.artifacts import Artifact
from happyneurons.store.documents import Store

_MEDIA = {".json": "application/json", ".png": "image/png", ".csv": "text/csv", ".html": "text/html; charset=utf-8"}
_GZIP = 31  # zlib's number for a gzip header


@dataclass(frozen=True)
class SourceFile:
    """A file to be published. name: its path at the place; path, tag: where it comes from, and its entity tag."""

    store: Store
    path: str
    name: str
    size: int
    tag: str

    @property
    def packed(self) -> bool:
        """Whether it is a compressed file under another name."""
        return self.path != self.name

    def pieces(self, keep_encoding: bool) -> tuple[Iterator[bytes], str | None]:
        """(bytes to store, their Content-Encoding). Raises NotFoundError, StoreError."""
        encoding = "gzip" if self.packed else self.store.stat(self.path)[1]
        data = self.store.pieces(self.path)
        return (data, encoding) if keep_encoding or encoding is None else (_unpacked(data), None)

    @property
    def media_type(self) -> str:
        name = self.name.rpartition("/")[2]
        ending = "." + name.rpartition(".")[2]
        return _MEDIA.get(".json" if name == "info" else ending, "application/octet-stream")


def files_of(artifact: Artifact) -> list[SourceFile]:
    """All files of an artifact, by name. Raises UserError if it is none of files that browsers could read."""
    if "://" not in artifact.data_uri or artifact.data_uri.startswith(("h5://", "ckpt://")):
        raise UserError(f"{artifact.uri}: browsers read precomputed volumes; write one with `hpn convert` first")
    store = Store(artifact.data_uri)
    listed = {path: (size, tag) for path, size, tag in store.entries("")}
    found = []
    for path, (size, tag) in listed.items():
        plain = path.removesuffix(".gz")
        name = plain if plain not in listed or plain == path else path
        found.append(SourceFile(store, path, name, size, tag))
    if not found:
        raise UserError(f"{artifact.uri}: there are no files at {artifact.data_uri}")
    return sorted(found, key=lambda f: f.name)


def digest(pieces: Iterator[bytes]) -> tuple[str, int]:
    """(sha256, length) of bytes that come in pieces."""
    hashed, size = hashlib.sha256(), 0
    for piece in pieces:
        hashed.update(piece)
        size += len(piece)
    return hashed.hexdigest(), size


def _unpacked(pieces: Iterator[bytes]) -> Iterator[bytes]:
    unpacker = zlib.decompressobj(_GZIP)
    for piece in pieces:
        yield unpacker.decompress(piece)
    yield unpacker.flush()
