"""Where data may be read from: a list of folders and URIs, and whether a URI lies below one of them.

Two places ask. Servers ask for every request (happyneurons.jobs.locations), before anything is opened.
Ranks ask again whenever they open something, if HPN_ALLOWED_ROOTS is set (a JSON list; servers with
`allowed_roots` set it for what they start): lists of files, sections and links inside data may point
anywhere, and may be changed after the request.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

from happyneurons.errors import UserError

VARIABLE = "HPN_ALLOWED_ROOTS"
REMOTE = ("s3", "gs", "az")
WRAPPERS = ("precomputed://", "h5://", "ckpt://", "swc://")
_USERINFO = re.compile(r"://[^/\s?#\"']*@")
_SIGNED = re.compile(r"(?i)[?&](x-amz-(signature|credential|security-token)|x-goog-signature|sig|awsaccesskeyid)=")


class Roots:
    """Folders and URIs below which data may be read. `url` gives them as text."""

    def __init__(self, roots: Iterable[str]) -> None:
        """roots: absolute paths, file://…, s3://BUCKET[/PREFIX], gs://…, az://…. Raises UserError."""
        self._folders: list[str] = []
        self._remote: list[str] = []
        self.roots = tuple(roots)
        for root in self.roots:
            scheme, separator, rest = root.partition("://")
            if not separator or scheme == "file":
                path = unquote(urlsplit(root).path) if separator else os.path.expanduser(root)
                if not os.path.isabs(path):
                    raise UserError(f"allowed_roots: {root}: expected an absolute path or a URI")
                self._folders.append(os.path.realpath(path))
            elif scheme in (*REMOTE, "memory") and (rest.strip("/") or scheme == "memory"):
                self._remote.append(root.rstrip("/"))
            else:
                raise UserError(f"allowed_roots: {root}: expected a path, file://…, or BUCKET/PREFIX of s3, gs or az")

    @property
    def written(self) -> Roots:
        """Where jobs may write: the store, which comes first. The others are for reading."""
        return Roots(self.roots[:1])

    def problem(self, uri: str) -> str | None:
        """Why a URI may not be read, or None. It need not exist."""
        if secret_in(uri):
            return SECRET
        if any(ord(c) < 32 or ord(c) == 127 for c in uri) or uri != uri.strip():
            return "a URI without control characters and blanks around it"  # urllib would drop them
        if "#" in uri and (problem := self.problem(uri.partition("#")[0])):
            return problem  # what is opened of STORE/jobs/KEY/manifest.json#OUTPUT
        kind = next((w for w in WRAPPERS if uri.startswith(w)), "")
        rest = uri.removeprefix(kind)
        if kind == "h5://":
            rest = rest.partition("?")[0]
        scheme, separator, _ = rest.partition("://")
        if not separator or scheme == "file":
            # As documents.local_path reads them: only file:// is decoded, only plain paths have ~.
            path = unquote(urlsplit(rest).path) if separator else os.path.expanduser(rest)
            return None if path and self.holds(path) else self._expected()
        if scheme in (*REMOTE, "memory"):
            return None if self._holds_remote(rest) else self._expected()
        return f"no scheme {scheme}:// that this server reads"

    def holds(self, path: str | os.PathLike[str]) -> bool:
        """Whether a path lies below one of the folders, links and `..` followed."""
        real = os.path.realpath(path)
        return any(real == folder or real.startswith(folder.rstrip("/") + "/") for folder in self._folders)

    def _holds_remote(self, uri: str) -> bool:
        decoded = uri
        while (once := unquote(decoded)) != decoded:  # some clients decode what others do not
            decoded = once
        path = decoded.partition("://")[2]
        if any(part in (".", "..") for part in re.split(r"[/\\]", path)) or "?" in path:
            return False
        uri = uri.rstrip("/")
        return any(uri == root or uri.startswith(root.rstrip("/") + "/") for root in self._remote)

    def _expected(self) -> str:
        return f"a place below {', '.join(self.roots)} (the server's store and allowed_roots)"


SECRET = "no user, password or signature in a URI: credentials come from the server's environment"


def secret_in(text: str) -> bool:
    """Whether a text has a URI with a user, a password or a signature in it. What is refused is not repeated."""
    return bool(_USERINFO.search(text) or _SIGNED.search(text))


def check_open(uri: str) -> None:
    """Raises UserError if the environment of this process does not allow to open a URI or path."""
    given = os.environ.get(VARIABLE)
    if given and (problem := _of_environment(given).problem(uri)):
        raise UserError(f"{uri if problem is not SECRET else 'a URI'} may not be read here: expected {problem}")


def check_path(path: Path) -> None:
    """`check_open` of a path that was named inside of data."""
    given = os.environ.get(VARIABLE)
    if given and not _of_environment(given).holds(path):
        raise UserError(f"{path} may not be read here: it lies outside of {', '.join(_of_environment(given).roots)}")


@lru_cache(maxsize=8)
def _of_environment(given: str) -> Roots:
    try:
        return Roots(json.loads(given))
    except (ValueError, TypeError):
        raise UserError(f"{VARIABLE}: expected a JSON list of paths and URIs") from None


def as_variable(roots: Roots) -> str:
    """The value of HPN_ALLOWED_ROOTS for processes that a server starts."""
    return json.dumps(roots.roots)
