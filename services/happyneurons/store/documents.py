"""Documents: small objects under one root URI, with put-if-absent.

The store is the only durable state of the whole system. Every process reaches the same root, be
it `file:///shared/folder` or `s3://bucket/prefix` (any S3 server: set AWS_ENDPOINT_URL). The one
primitive that everything else is built on is :meth:`Store.create`: of many writers of a path,
exactly one wins.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from happyneurons.errors import NotFoundError, StoreAccessError, StoreError, UserError
from happyneurons.store.roots import check_open
from happyneurons.store.telemetry import Timed

if TYPE_CHECKING:
    import numpy as np

Names = list[str]  # inside Store, `list` is its method

SCHEMES = ("file", "s3", "gs", "az", "memory")


def normalize_uri(uri: str) -> str:
    """Absolute URI without trailing slash; plain paths become file:// URIs."""
    if "://" not in uri:
        return Path(uri).expanduser().resolve().as_uri()
    scheme = uri.split("://", 1)[0]
    if scheme not in SCHEMES:
        raise UserError(f"store URI {uri!r}: scheme must be one of {', '.join(SCHEMES)}")
    return uri.rstrip("/")


def local_path(uri: str) -> Path | None:
    """Path of a file:// URI or plain path; None for remote URIs.

    Raises UserError where this process may not read it (see happyneurons.store.roots).
    """
    check_open(uri)
    if "://" not in uri:
        return Path(uri).expanduser().resolve()
    parts = urlsplit(uri)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


def canonical_json(value: Any) -> bytes:
    """The one byte representation of a JSON value: sorted keys, no blanks, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


class Store:
    """A root under which documents live. Paths are relative, with `/`.

    Cheap to pickle by `uri`; thread-safe.
    """

    def __init__(self, uri: str) -> None:
        import obstore.store

        self.uri = normalize_uri(uri)
        check_open(self.uri)
        scheme = self.uri.split("://", 1)[0]
        try:
            if scheme == "file":
                root = local_path(self.uri)
                assert root is not None
                root.mkdir(parents=True, exist_ok=True)
                self._backend: Any = obstore.store.LocalStore(prefix=root, mkdir=True)
            elif scheme == "memory":
                self._backend = obstore.store.MemoryStore()
            else:
                options: dict[str, Any] = {"retry_config": {"max_retries": 8}}
                if os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://"):
                    options["client_options"] = {"allow_http": True}
                self._backend = obstore.store.from_url(self.uri, **options)
        except OSError as error:
            raise StoreAccessError(f"store {self.uri}: {error.strerror or error}") from error
        except Exception as error:
            raise StoreAccessError(f"store {self.uri}: {_first_line(error)}") from error

    def __reduce__(self) -> tuple[type[Store], tuple[str]]:
        return (Store, (self.uri,))

    def __repr__(self) -> str:
        return f"Store({self.uri!r})"

    def url(self, path: str) -> str:
        """Absolute URI of a document."""
        return f"{self.uri}/{path}" if path else self.uri

    def relative(self, uri: str) -> str | None:
        """Path of a URI below this root, or None if it lies elsewhere."""
        prefix = self.uri + "/"
        return uri[len(prefix) :] if uri.startswith(prefix) else None

    def get(self, path: str) -> bytes:
        """The document's bytes. Raises NotFoundError, StoreError."""
        import obstore

        with _errors(self, path, "get"):
            return bytes(obstore.get(self._backend, path).bytes())

    def get_range(self, path: str, start: int, length: int) -> bytes:
        """`length` bytes from `start` on, fewer at the document's end. Raises NotFoundError, StoreError."""
        import obstore

        with _errors(self, path, "get_range"):
            return bytes(obstore.get_range(self._backend, path, start=start, length=length))

    def stat(self, path: str) -> tuple[int, str | None]:
        """(length in bytes, Content-Encoding or None) of a document. Raises NotFoundError, StoreError.

        CloudVolume's chunks on object stores are compressed, and say so in this header only.
        """
        import obstore

        with _errors(self, path, "head"):
            # A GET without content: obstore's own `head` does not tell the attributes.
            answer = obstore.get(self._backend, path, options={"head": True})
            return int(answer.meta["size"]), answer.attributes.get("Content-Encoding")

    def exists(self, path: str) -> bool:
        import obstore

        try:
            with _errors(self, path, "head"):
                obstore.head(self._backend, path)
        except NotFoundError:
            return False
        return True

    def put(self, path: str, data: bytes) -> None:
        """Write, replacing what is there. Readers see the old or the new bytes, never a mixture."""
        import obstore

        with _errors(self, path, "put"):
            obstore.put(self._backend, path, data)

    def put_file(self, path: str, file: Path) -> None:
        """`put` of a file's content, in pieces. Raises FileNotFoundError if there is no such file."""
        import obstore

        with file.open("rb") as source, _errors(self, path, "put"):
            obstore.put(self._backend, path, source, max_concurrency=4)  # of pieces of 5 MiB

    def put_web(
        self, path: str, data: bytes | Iterator[bytes], *, media_type: str = "", encoding: str | None = None
    ) -> str:
        """`put`, with the headers that a web server will send with it; returns its entity tag.

        data: pieces are uploaded as they come. Folders keep no headers: they must not be given any encoding.
        """
        import obstore

        headers = {"Content-Type": media_type, "Content-Encoding": encoding}
        known = {name: value for name, value in headers.items() if value}
        attributes: Any = None if self.uri.startswith(("file:", "memory:")) else known
        with _errors(self, path, "put"):
            answer = obstore.put(self._backend, path, data, attributes=attributes or None, max_concurrency=4)
        return str(answer["e_tag"] or "")

    def entries(self, prefix: str) -> Iterator[tuple[str, int, str]]:
        """(path, length in bytes, entity tag) of the documents below a folder. Whatever is written anew has another
        tag: of a local file it is made of its inode, time of change and length."""
        import obstore

        with _errors(self, prefix, "list"):
            for page in obstore.list(self._backend, prefix=prefix.rstrip("/") or None):
                for meta in page:
                    yield meta["path"], int(meta["size"]), str(meta["e_tag"] or "")

    def pieces(self, path: str) -> Iterator[bytes]:
        """The document's bytes in pieces of some MiB. Raises NotFoundError, StoreError."""
        # Ranges: obstore's own stream takes more than twice as long for local files.
        size, step = self.stat(path)[0], 8 << 20
        for start in range(0, size, step):
            yield self.get_range(path, start, min(step, size - start))

    def create(self, path: str, data: bytes) -> bool:
        """Put-if-absent: True if this call wrote the document, False if one was there already.

        A retry after a lost answer may find our own bytes: those count as written by us, so
        callers put something of their own (an owner id) into what they create.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError

        try:
            with _errors(self, path, "create"):
                obstore.put(self._backend, path, data, mode="create")
        except AlreadyExistsError:
            return self.get(path) == data
        return True

    def delete(self, path: str) -> None:
        """Remove a document; nothing happens if there is none."""
        import obstore

        try:
            with _errors(self, path, "delete"):
                obstore.delete(self._backend, path)
        except NotFoundError:
            return

    def list(self, prefix: str) -> Iterator[str]:
        """Paths below a folder, at any depth, page by page; sorted within a page only on S3."""
        import obstore

        pages: Iterator[Any] | None = None
        while True:
            with _errors(self, prefix, "list"):  # each page by itself: what is done with it is not the store's time
                if pages is None:
                    pages = iter(obstore.list(self._backend, prefix=prefix.rstrip("/") or None))
                page = next(pages, None)
            if page is None:
                return
            for meta in page:
                yield meta["path"]

    def folders(self, prefix: str) -> Names:
        """Names of the folders directly below a folder, sorted."""
        import obstore

        with _errors(self, prefix, "list"):
            answer = obstore.list_with_delimiter(self._backend, prefix=prefix.rstrip("/") or None)
        return sorted(p.rstrip("/").rsplit("/", 1)[-1] for p in answer["common_prefixes"])

    # --- JSON and arrays ---------------------------------------------------------------------

    def get_json(self, path: str) -> Any:
        return json.loads(self.get(path))

    def find_json(self, path: str) -> Any | None:
        """The document, or None if there is none."""
        try:
            return json.loads(self.get(path))
        except NotFoundError:
            return None

    def put_json(self, path: str, value: Any) -> None:
        self.put(path, canonical_json(value))

    def create_json(self, path: str, value: Any) -> bool:
        return self.create(path, canonical_json(value))

    def put_arrays(self, path: str, **arrays: np.ndarray) -> bytes:
        """Write arrays as one compressed npz with deterministic bytes; returns those bytes."""
        data = npz_bytes(**arrays)
        self.put(path, data)
        return data

    def get_arrays(self, path: str) -> dict[str, np.ndarray]:
        import numpy as np

        with np.load(io.BytesIO(self.get(path)), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}

    def check_writable(self) -> None:
        """Raise StoreAccessError now, rather than after hours of work."""
        probe = f".probe/{os.getpid()}-{os.urandom(4).hex()}"
        try:
            self.put(probe, b"")
            self.delete(probe)
        except (StoreError, NotFoundError, OSError) as error:
            raise StoreAccessError(f"store {self.uri} cannot be written: {error}") from error


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__


class _errors:
    """Counts one call and turns the backend's exceptions into ours; AlreadyExistsError passes."""

    def __init__(self, store: Store, path: str, operation: str) -> None:
        self.store, self.path, self.call = store, path, Timed(operation)

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _tb: object) -> None:
        with self.call:
            if error is not None:
                self._translate(error)

    def _translate(self, error: BaseException) -> None:
        from obstore import exceptions as ex

        where = self.store.url(self.path)
        if isinstance(error, (ex.NotFoundError, FileNotFoundError)):
            raise NotFoundError(f"{where}: not found") from error
        if isinstance(error, ex.AlreadyExistsError):
            return
        denied = isinstance(error, (ex.PermissionDeniedError, ex.UnauthenticatedError, PermissionError))
        if denied or _DENIED_LOCALLY.search(str(error)):
            self.call.failure = "denied"
            raise StoreAccessError(f"{where}: access denied; check credentials and permissions") from error
        if isinstance(error, (ex.BaseError, OSError)):
            self.call.failure = "unavailable"
            raise StoreError(f"{where}: {_first_line(error)}") from error


# For local files the backend says "generic error" and leaves the system's error number in the text.
_DENIED_LOCALLY = re.compile(rf"\(os error ({errno.EACCES}|{errno.EPERM}|{errno.EROFS})\)")


def file_at(uri: str) -> tuple[Store, str]:
    """(store, path in it) of a single file. Raises UserError as normalize_uri and Store do."""
    folder, _, name = normalize_uri(uri).rpartition("/")
    return Store(folder), name


def npz_bytes(**arrays: np.ndarray) -> bytes:
    """Arrays as one compressed npz: the same bytes for the same arrays, under every Python."""
    import numpy as np

    # numpy's own savez_compressed writes other headers under Python 3.11.2 than under 3.11.4.
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), member.getvalue(), zipfile.ZIP_DEFLATED)
    return buffer.getvalue()
