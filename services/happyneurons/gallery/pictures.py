"""Pictures of a run's results: those that its preview jobs made, and for the rest new ones."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from happyneurons.errors import HappyError
from happyneurons.stages.preview.drawing import LABELS
from happyneurons.stages.preview.stage import PICTURABLE, PreviewParams
from happyneurons.store.artifacts import Artifact
from happyneurons.store.documents import Store
from happyneurons.worker.local import run_stage


@dataclass(frozen=True)
class Picture:
    """A picture in the page's folder. file: relative path; view: `sheet` for an overview of others."""

    file: str
    title: str
    view: str
    width: int
    height: int


def picturable(artifact: Artifact) -> bool:
    return artifact.kind in PICTURABLE and not artifact.data_uri.startswith("ckpt://")


def draw_pictures(artifacts: Sequence[Artifact], folder: Path, params: Mapping[str, Any] | None = None) -> int:
    """Draw artifacts into a folder: PNG files, index.json and a notebook; returns the number of pictures.

    Segmentations are drawn over the last image before them. What cannot be drawn is left out. Raises
    UserError if a parameter of the stage preview is wrong.
    """
    with tempfile.TemporaryDirectory() as scratch:
        store = _drawn(artifacts, scratch, params or {})
        folder.mkdir(parents=True, exist_ok=True)
        for path in store.list(""):
            (folder / path).write_bytes(store.get(path))
        return len(store.get_json("index.json")["pictures"])


def pictures_of(
    artifacts: Mapping[str, Artifact], folder: Path, *, draw: bool = True, params: Mapping[str, Any] | None = None
) -> dict[str, list[Picture]]:
    """Pictures of each artifact of a run, by name, as files below `folder`/pictures.

    artifacts: `JOB.OUTPUT` → artifact, in the run's order, those of kind pictures too. draw: also what no
    preview job has drawn.
    """
    found: dict[str, list[Picture]] = {}
    target = folder / "pictures"
    target.mkdir(parents=True, exist_ok=True)
    places = {_place(a): name for name, a in artifacts.items()}
    for name, artifact in artifacts.items():
        if artifact.kind == "pictures":
            _take(artifact.store(), target, name, places, found)
    missing = [n for n, a in artifacts.items() if picturable(a) and n not in found]
    if draw and missing:
        wanted = list(missing)
        if any(artifacts[n].kind in LABELS for n in missing):
            # Colours need something below them.
            wanted = [n for n, a in artifacts.items() if n in missing or a.kind == "image_volume"]
        with tempfile.TemporaryDirectory() as scratch:
            store = _drawn([artifacts[n] for n in wanted], scratch, params or {})
            _take(store, target, "drawn", {_place(artifacts[n]): n for n in missing}, found)
    return found


def _drawn(artifacts: Sequence[Artifact], scratch: str, params: Mapping[str, Any]) -> Store:
    """A store with the pictures, made by the stage preview."""
    known = PreviewParams.model_validate(dict(params))
    log = logging.getLogger("happyneurons")
    before, log.propagate = log.propagate, False  # what a job logs is for its own log
    try:
        manifest = run_stage(
            Store(scratch), "preview", inputs={"results": [a.uri for a in artifacts]},
            params=known.model_dump(exclude_unset=True), allow_failed_tasks=1_000_000,
        )  # fmt: skip
    finally:
        log.propagate = before
    return manifest.outputs["pictures"].store()


def _take(
    store: Store, target: Path, source: str, places: Mapping[str, str], found: dict[str, list[Picture]]
) -> None:  # fmt: skip
    """Copy the pictures of known artifacts that have none yet."""
    try:
        entries = store.get_json("index.json")["pictures"]
    except (HappyError, ValueError):
        return
    new: dict[str, list[Picture]] = {}
    for entry in entries:
        name = places.get(entry["artifact"])
        if name is None or name in found:
            continue
        file = f"{_safe(source)}-{entry['file']}"
        try:
            (target / file).write_bytes(store.get(entry["file"]))
        except HappyError:
            continue
        new.setdefault(name, []).append(
            Picture(f"pictures/{file}", entry["title"], entry["view"], entry["width"], entry["height"])
        )
    found |= new


def _place(artifact: Artifact) -> str:
    """As preview names artifacts in its index."""
    _, jobs, rest = artifact.uri.rpartition("/jobs/")
    return f"jobs/{rest}" if jobs else artifact.uri


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)


def single_views(pictures: Iterable[Picture]) -> list[Picture]:
    """Pictures without the overviews of them."""
    return [p for p in pictures if p.view != "sheet"]
