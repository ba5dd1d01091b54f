"""Copies artifacts to a place, only what is new, each file verified; readers never see half of it.

    data/LAYER/DIGEST/…      the files of an artifact; another result of the same layer has a folder of its own
    data/LAYER/DIGEST.json   their record: size, sha256 and entity tag of each
    state.json               the Neuroglancer state
    published.json           what is there, written last

A file counts as there if the place lists it with the size and the entity tag of its record; whatever is
written anew, by whomever, has another tag, is read again and put right. What a killed attempt left is
taken over if its bytes are right.
"""

from __future__ import annotations

import datetime
import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, TypeVar

from happyneurons.errors import NotFoundError, StoreError, UserError
from happyneurons.publish.files import SourceFile, digest, files_of
from happyneurons.publish.places import keeps_headers
from happyneurons.store.artifacts import Artifact
from happyneurons.store.documents import Store
from happyneurons.viewer.links import DEMO
from happyneurons.viewer.panels import Panel
from happyneurons.viewer.published import INDEX, document_of, layers_of
from happyneurons.viewer.session import SHOWN, published_state

T = TypeVar("T")
STATE = "state.json"
KINDS = (*SHOWN, "pictures", "report")
RECORD_S = 20.0
"""How often the record of finished files is written: what a killed attempt loses."""
WHOLE_BYTES = 8 << 20
ATTEMPTS = 3


@dataclass
class Counts:
    """Files and bytes: written now, found at the place and right, as the record says; and old ones removed."""

    written: int = 0
    written_bytes: int = 0
    adopted: int = 0
    unchanged: int = 0
    removed: int = 0
    bytes: int = 0

    @property
    def files(self) -> int:
        return self.written + self.adopted + self.unchanged


@dataclass(frozen=True)
class Published:
    """place: its URI; url: where browsers read it, "" if nobody said; link: Neuroglancer with the state."""

    place: str
    url: str
    link: str
    layers: Mapping[str, str]
    counts: Counts


@dataclass
class _Record:
    """What is known of the files of one folder at the place."""

    store: Store
    path: str
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    changed: bool = False
    saved_at: float = field(default_factory=time.monotonic)

    def load(self) -> None:
        try:
            document = self.store.find_json(self.path)
        except ValueError:  # damaged: every file will be looked at
            document = None
        self.files = dict(document["files"]) if document else {}

    def note(self, name: str, entry: dict[str, Any]) -> None:
        self.changed |= self.files.get(name) != entry
        self.files[name] = entry
        if time.monotonic() - self.saved_at > RECORD_S:
            self.save(complete=False)

    def save(self, *, complete: bool) -> None:
        self.store.put_json(self.path, {"complete": complete, "files": self.files})
        self.saved_at, self.changed = time.monotonic(), False


def publishable(artifact: Artifact) -> bool:
    return artifact.kind in KINDS


def publish(
    layers: Mapping[str, Artifact],
    to: str,
    *,
    url: str = "",
    title: str = "",
    viewer: str = DEMO,
    threads: int = 16,
    prune: bool = False,
    check: bool = False,
    on_file: Callable[[int, int], None] = lambda done, total: None,
) -> Published:
    """Publish artifacts under their layer names and return where they are.

    to: URI of the place (s3://…, gs://…, az://…, file://…). url: what browsers read it by; without it there is
    no link. prune: remove what other results of these or other layers left there. check: read every file
    at the place, too. on_file: told (files done, files of all layers).

    Raises UserError before anything is copied, StoreError (try again: what is there is kept), NotFoundError if a
    file vanishes meanwhile.
    """
    if not layers:
        raise UserError("nothing to publish")
    names = {name: _folder_name(name) for name in layers}
    if len(set(names.values())) < len(names):
        raise UserError(f"layers {', '.join(names)}: two have the same name in a path")
    place = Store(to)
    if any(place.uri == a.data_uri or a.data_uri.startswith(place.uri + "/") for a in layers.values()):
        raise UserError(f"{place.uri}: the results are there already; publish them to another place")
    place.check_writable()
    files = {name: files_of(artifact) for name, artifact in layers.items()}
    counts, total = Counts(), sum(len(f) for f in files.values())
    fields: dict[str, Any] = {}
    for name, artifact in layers.items():
        folder = f"data/{names[name]}/{artifact.digest[:16] or '0'}"
        before, size_before = counts.files, counts.bytes
        _copy(files[name], place, folder, threads, check, counts, lambda: on_file(counts.files, total))
        fields[name] = {
            **artifact.model_dump(mode="json", exclude={"data_uri"}), "path": folder,
            "files": counts.files - before, "bytes": counts.bytes - size_before,
        }  # fmt: skip
    document = {
        "schema_version": 1, "title": title, "layers": fields, "url": url,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
    tables = {n: document_of(a, "table.json") for n, a in layers.items() if a.kind == "table"}
    address = _write_state(place, document, tables, url, viewer)
    place.put_web(INDEX, json.dumps(document, indent=1).encode(), media_type="application/json")
    if prune:
        _prune(place, {f["path"] for f in fields.values()}, counts)
    return Published(place.uri, url, address, {n: f"{url or place.uri}/{f['path']}" for n, f in fields.items()}, counts)


def _write_state(
    place: Store, document: Mapping[str, Any], tables: Mapping[str, dict[str, Any]], url: str, viewer: str
) -> str:
    """The state at the place, as its readers see it; returns the link, "" if there is none."""
    found = layers_of(document, url) if url else {}
    shown = {
        n: a.model_copy(update={"properties": {**a.properties, **tables[n]}}) if n in tables else a
        for n, a in found.items()
        if a.kind in SHOWN
    }
    if not any(a.kind != "table" for a in shown.values()):
        return ""
    state = published_state([Panel(document["title"], shown)])
    if document["title"]:
        state["title"] = document["title"]
    place.put_web(STATE, json.dumps(state).encode(), media_type="application/json")
    # Neuroglancer reads the state from where it is: the link stays short, and shows what is there then.
    return f"{viewer.rstrip('/')}/#!{url}/{STATE}"


def _copy(
    files: list[SourceFile], place: Store, folder: str, threads: int, check: bool, counts: Counts,
    told: Callable[[], None],
) -> None:  # fmt: skip
    record = _Record(place, f"{folder}.json")
    record.load()
    there = {path.removeprefix(f"{folder}/"): (size, tag) for path, size, tag in place.entries(folder)}
    lock = threading.Lock()

    def one(file: SourceFile) -> None:
        known, found = record.files.get(file.name), there.get(file.name)
        sound = known is not None and found == (known["size"], known["tag"])
        if sound and not check and known is not None and known["source"] == file.tag:
            entry, kind = known, "unchanged"
        else:
            entry, kind = _bring(file, place, f"{folder}/{file.name}", known if sound and not check else None, found)
        with lock:
            setattr(counts, kind, getattr(counts, kind) + 1)
            counts.written_bytes += entry["size"] if kind == "written" else 0
            counts.bytes += entry["size"]
            record.note(file.name, entry)
            told()

    try:
        in_threads(one, files, threads)
    except BaseException:
        if record.changed:
            record.save(complete=False)
        raise
    # Of a volume that was changed in place; artifacts of jobs never change.
    for name in set(record.files) - {f.name for f in files}:
        place.delete(f"{folder}/{name}")
        del record.files[name]
        counts.removed += 1
        record.changed = True
    if record.changed or not place.exists(record.path):
        record.save(complete=True)


def _bring(
    file: SourceFile, place: Store, path: str, known: Mapping[str, Any] | None, found: tuple[int, str] | None
) -> tuple[dict[str, Any], str]:
    """(record of the file, what was done) once its bytes at the place are right.

    known: its record, if the place's file is the recorded one. found: (size, tag) of what is there.
    """
    keep = keeps_headers(place)
    pieces, encoding = file.pieces(keep)
    sha256, size = digest(pieces)
    if known is not None and known["sha256"] == sha256:
        return {**known, "source": file.tag}, "unchanged"
    entry = {"size": size, "sha256": sha256, "source": file.tag}
    if found is not None and found[0] == size and _digest_at(place, path) == sha256:
        # What a folder cannot keep was not asked for; an object store's header is looked at.
        if not keep or place.stat(path)[1] == encoding:
            return {**entry, "tag": found[1]}, "adopted"
    for _ in range(ATTEMPTS):
        pieces, _ = file.pieces(keep)
        data = b"".join(pieces) if size <= WHOLE_BYTES else pieces
        tag = place.put_web(path, data, media_type=file.media_type, encoding=encoding)
        if _digest_at(place, path) == sha256:
            return {**entry, "tag": tag}, "written"
        sha256, size = digest(file.pieces(keep)[0])  # unless it was the source that changed
        entry = {"size": size, "sha256": sha256, "source": file.tag}
    raise StoreError(f"{place.url(path)}: reads otherwise than it was written, {ATTEMPTS} times")


def _digest_at(place: Store, path: str) -> str | None:
    try:
        return digest(place.pieces(path))[0]
    except NotFoundError:
        return None


def in_threads(work: Callable[[T], None], items: Iterable[T], threads: int) -> None:
    """All of them, a few at a time; the first error ends it once what is under way is done."""
    with ThreadPoolExecutor(threads) as pool:
        running: set[Future[None]] = set()
        for item in items:
            running.add(pool.submit(work, item))
            if len(running) >= 2 * threads:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
        for future in running:
            future.result()


def _prune(place: Store, kept: set[str], counts: Counts) -> None:
    """Remove other results: folders that have a record of ours, and the records."""
    for layer in place.folders("data"):
        records = {p for p, _, _ in place.entries(f"data/{layer}") if p.count("/") == 2 and p.endswith(".json")}
        for record in sorted(records):
            folder = record.removesuffix(".json")
            if folder not in kept:
                for path, _, _ in place.entries(folder):
                    place.delete(path)
                    counts.removed += 1
                place.delete(record)


def _folder_name(layer: str) -> str:
    name = re.sub(r"[^A-Za-z0-9_.\-\[\],]+", "_", layer).strip(".")
    if not name:
        raise UserError(f"layer {layer!r}: a name needs letters or digits")
    return re.sub(r"[\[\],]", "_", name)
