"""Places for published results, and the address under which browsers read them."""

from __future__ import annotations

import os
from urllib.parse import quote

from happyneurons.store.documents import Store

CORS_ADVICE = "allow GET and HEAD from all origins, and the header Range (docs/viewing.md, Publishing)"
_TIMEOUT_S = 20.0


def keeps_headers(store: Store) -> bool:
    """Whether a place stores the header Content-Encoding with an object."""
    return not store.uri.startswith(("file:", "memory:"))


def public_url(uri: str) -> str | None:
    """Address of an object store's URI for browsers, as its service has it; None for others."""
    scheme, _, rest = uri.partition("://")
    bucket, _, prefix = rest.partition("/")
    path = quote(prefix)
    if scheme == "s3":
        endpoint = os.environ.get("AWS_ENDPOINT_URL", "").rstrip("/")
        if endpoint:
            return f"{endpoint}/{bucket}/{path}".rstrip("/")
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        return f"https://{bucket}.s3.{region}.amazonaws.com/{path}".rstrip("/")
    if scheme == "gs":
        return f"https://storage.googleapis.com/{bucket}/{path}".rstrip("/")
    return None


def browser_problem(url: str, *, origin: str = "https://neuroglancer-demo.appspot.com") -> str | None:
    """Why a page of another origin cannot read a published document, with what to do; None if it can."""
    import requests

    try:
        answer = requests.get(url, headers={"Origin": origin, "Range": "bytes=0-0"}, timeout=_TIMEOUT_S)
    except requests.RequestException as error:
        return f"{url} cannot be reached from here ({type(error).__name__})"
    if answer.status_code not in (200, 206):
        return f"{url} answers {answer.status_code} to readers without credentials: make the place public"
    if answer.headers.get("Access-Control-Allow-Origin") not in ("*", origin):
        return f"{url} may not be read by pages of other origins: {CORS_ADVICE}"
    if answer.status_code == 200:
        return f"{url}: the server ignores the header Range, which sharded meshes and volumes need"
    return None
