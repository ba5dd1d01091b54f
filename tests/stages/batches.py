"""Batch documents of simulated acquisitions, as the orchestrator writes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from happyneurons.client.sections import section_message
from happyneurons.orchestrator.sections import section_document
from happyneurons.store.documents import Store


def section_of(folder: Path, z: int) -> Path:
    """The document of a section in an acquisition folder."""
    return folder / "sections" / f"{z:06d}" / "section.json"


def write_batch(
    store: Store, name: str, sections: Iterable[Path], change: Callable[[dict[str, Any]], None] = lambda _: None
) -> str:
    """Write a batch of sections; returns its URI. change: alters a section before it is written."""
    documents = []
    for path in sections:
        document = {**section_document(section_message(path)), "version": 1}
        change(document)
        documents.append(document)
    store.put_json(f"batches/{name}.json", {"schema_version": 1, "sections": documents})
    return store.url(f"batches/{name}.json")
