"""Who decided what: one JSON line for each call that changes something, and for each refusal.

The same is kept in a run's event log; this log also has what was refused, and outlives runs. Lines
have names and numbers only, never tokens, parameters or the text of pipelines.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any

from happyneurons.errors import UserError

FIELDS = ("run_id", "key", "gate", "decision", "project", "request_id", "jobs", "last", "imaged_again", "reason")
"""Fields of requests that say what a call is about."""
LONGEST = 200


class AuditLog:
    """Lines into a file (which may be rotated: it is opened again when it was moved) or to standard error."""

    def __init__(self, path: Path | None) -> None:
        """Raises UserError if the file cannot be written."""
        handler: logging.Handler
        if path is None:
            handler = logging.StreamHandler(sys.stderr)
        else:
            try:
                handler = WatchedFileHandler(path, encoding="utf-8")
            except OSError as error:
                raise UserError(f"audit.file: {path}: {error.strerror}") from None
        handler.setFormatter(logging.Formatter("%(message)s"))
        # Not in the tree of loggers: two servers in one process have a log each.
        self._logger = logging.Logger("happyneurons.audit", logging.INFO)
        self._logger.addHandler(handler)
        self._handler = handler

    def write(self, **fields: Any) -> None:
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
        line = {"audit": "happyneurons", "time": stamp, **fields}
        self._logger.info(json.dumps({k: v for k, v in line.items() if v not in (None, "", [])}, ensure_ascii=False))

    def close(self) -> None:
        self._handler.close()


def about(request: Any, response: Any = None) -> dict[str, Any]:
    """What a call is about, from its messages."""
    found: dict[str, Any] = {}
    names = request.DESCRIPTOR.fields_by_name if request is not None else {}
    for name in FIELDS:
        if name not in names:
            continue
        value, field = getattr(request, name), names[name]
        if field.enum_type is not None:
            value = field.enum_type.values_by_number[value].name if value in field.enum_type.values_by_number else value
        elif not isinstance(value, (str, bool, int)):
            value = list(value)[:20]
        if value or value is True:
            found[name] = value[:LONGEST] if isinstance(value, str) else value
    if "section" in names and request.HasField("section"):
        found["z"] = request.section.z
    made = getattr(response, "run", None) or getattr(response, "job", None)
    if made is not None:
        kind = "run_id" if hasattr(response, "run") else "key"
        found.setdefault(kind, made.id if kind == "run_id" else made.key)
    return found
