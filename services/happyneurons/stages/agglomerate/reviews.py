"""A person's decisions about pairs: read from the table that the stage wrote, or from a list of one's own.

CSV with a header line, or JSON as `{"columns": […], "rows": [[…]]}` or as a list of objects. Columns
`segment_a`, `segment_b` and `review` count: accept, reject, or nothing where the scores decide.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping
from typing import Any, Literal

from happyneurons.errors import NotFoundError, UserError
from happyneurons.store.documents import file_at

Review = Literal["accept", "reject"]
Reviews = Mapping[tuple[int, int], Review]
"""By pair of ids, the smaller one first."""


def read_bytes(uri: str) -> bytes:
    """The file's content. Raises UserError if there is none."""
    store, name = file_at(uri)
    try:
        return store.get(name)
    except NotFoundError:
        raise UserError(f"params.reviewed: there is no {uri}") from None


def digest(uri: str) -> str:
    return hashlib.sha256(read_bytes(uri)).hexdigest()


def read_reviews(uri: str) -> Reviews:
    """Raises UserError naming the row that cannot be understood, or that contradicts another one."""
    content = read_bytes(uri)
    try:
        rows = _json_rows(content) if content.lstrip()[:1] in (b"{", b"[") else _csv_rows(content)
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"params.reviewed: {uri} is neither such a CSV nor such a JSON table ({error})") from None
    reviews: dict[tuple[int, int], Review] = {}
    for number, row in enumerate(rows, 1):
        where = f"params.reviewed: {uri}, row {number}"
        if not {"segment_a", "segment_b", "review"} <= row.keys():
            raise UserError(f"{where}: columns segment_a, segment_b and review are needed")
        review = str(row["review"] or "").strip().lower()
        if not review:
            continue
        if review not in ("accept", "reject"):
            raise UserError(f"{where}: review is {review!r}; write accept, reject or nothing")
        try:
            a, b = int(row["segment_a"]), int(row["segment_b"])
        except (ValueError, TypeError):
            raise UserError(f"{where}: segment_a and segment_b must be ids") from None
        if a == b or min(a, b) <= 0:
            raise UserError(f"{where}: {a} and {b} are no pair of segments")
        pair = (min(a, b), max(a, b))
        if reviews.setdefault(pair, review) != review:  # type: ignore[arg-type]
            raise UserError(f"{where}: {pair[0]} and {pair[1]} are both accepted and rejected")
    return dict(sorted(reviews.items()))


def _csv_rows(content: bytes) -> list[dict[str, Any]]:
    return list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"))))


def _json_rows(content: bytes) -> list[dict[str, Any]]:
    document = json.loads(content)
    if isinstance(document, dict):
        return [dict(zip(document["columns"], row, strict=True)) for row in document["rows"]]
    return [dict(row) for row in document]
