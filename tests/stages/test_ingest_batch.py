"""ingest takes the sections of a batch document, and nothing that lies between them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import h5py
import pytest

from happyneurons.acquisition.phantom import make_phantom
from happyneurons.acquisition.simulate import simulate_acquisition
from happyneurons.errors import UserError
from happyneurons.stages.ingest.stage import Ingest, IngestParams
from happyneurons.store.artifacts import Artifact, load_artifact
from happyneurons.store.documents import Store
from happyneurons.worker.local import run_stage

from .batches import section_of, write_batch

# A tile without a place.
NOWHERE = """{"schema_version": 1, "sections": [{"z": 1, "pixel_size_nm": 8, "tiles": [
    {"uri": "/a", "row": 0, "column": 0, "x_nm": "nan", "y_nm": 0, "width_px": 1, "height_px": 1}]}]}"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six sections of two tiles."""
    with h5py.File(tmp_path / "em.h5", "w") as f:
        f["em"] = make_phantom((8, 128, 192), seed=1).image
        f["em"].attrs["voxel_size_nm_xyz"] = (8.0, 8.0, 40.0)
    simulate_acquisition(f"h5://{tmp_path}/em.h5?em", tmp_path / "a", sections=(1, 7), tiles=(2, 1))
    return tmp_path / "a"


def ingest(store: Store, source: str, **params: Any) -> Artifact:
    manifest = run_stage(store, "ingest", params={"source": source, **params})
    return load_artifact(manifest.outputs["tiles"].uri)


def documents(tiles: Artifact) -> dict[str, Any]:
    store = tiles.store()
    return {path: store.get_json(path) for path in sorted(store.list("sections"))}


def test_a_batch_gives_what_the_folder_gives_for_its_sections(store: Store, folder: Path) -> None:
    batch = ingest(store, write_batch(store, "b", [section_of(folder, z) for z in (5, 2)]))
    assert batch.properties["sections"] == [2, 5]
    assert batch.properties["z_range"] == [2, 6]
    assert batch.voxel_size_nm_xyz == (8.0, 8.0, 40.0)
    whole = documents(ingest(store, str(folder)))
    assert documents(batch) == {path: whole[path] for path in ("sections/000002.json", "sections/000005.json")}


def test_its_key_depends_on_the_document_and_on_tiles_of_unknown_content(store: Store, folder: Path) -> None:
    stage, tile = Ingest(), section_of(folder, 2).parent / "tile_r0_c0.tif"

    def known(document: dict[str, Any]) -> None:
        for entry in document["tiles"]:
            path = Path(entry["uri"].removeprefix("file://"))
            entry["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()

    plain = IngestParams(source=write_batch(store, "plain", [section_of(folder, 2)]))
    hashed = IngestParams(source=write_batch(store, "hashed", [section_of(folder, 2)], known))
    before = stage.fingerprint(plain), stage.fingerprint(hashed)
    os.utime(tile, ns=(1, 1))
    assert stage.fingerprint(hashed) == before[1]
    assert stage.fingerprint(plain) != before[0]
    assert (
        stage.fingerprint(IngestParams(source=write_batch(store, "again", [section_of(folder, 2)], known))) == before[1]
    )
    assert (
        stage.fingerprint(IngestParams(source=write_batch(store, "other", [section_of(folder, 3)], known))) != before[1]
    )


def test_other_bytes_than_were_reported_are_damage(store: Store, folder: Path) -> None:
    def wrong(document: dict[str, Any]) -> None:
        document["tiles"][1]["sha256"] = "0" * 64

    source = write_batch(store, "b", [section_of(folder, 2)], wrong)
    with pytest.raises(UserError, match="section 2: tile row 0, column 1 cannot be used: .*not the file that was rep"):
        ingest(store, source)
    (document,) = documents(ingest(store, source, missing="mark")).values()
    assert (document["status"], document["tiles"][1]["status"]) == ("flagged", "truncated")


def test_a_missing_tile_is_named_or_marked(store: Store, folder: Path) -> None:
    source = write_batch(store, "b", [section_of(folder, z) for z in (2, 3)])
    (section_of(folder, 3).parent / "tile_r0_c1.tif").unlink()
    with pytest.raises(UserError, match="section 3: tile row 0, column 1 is missing"):
        ingest(store, source)
    found = documents(ingest(store, source, missing="mark"))
    assert [d["status"] for d in found.values()] == ["ok", "flagged"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"schema_version": 1, "sections": []}', "no batch of sections: Tuple should have at least 1 item"),
        ("[]", "no batch of sections"),
        ("{", "no batch of sections"),
        (NOWHERE, "section 1 has a tile without a finite position"),
        (None, "there is no"),
    ],
)  # fmt: skip
def test_what_is_no_batch_is_refused(tmp_path: Path, text: str | None, expected: str) -> None:
    if text is not None:
        (tmp_path / "b.json").write_text(text)
    with pytest.raises(UserError, match=expected):
        Ingest().fingerprint(IngestParams(source=str(tmp_path / "b.json")))
