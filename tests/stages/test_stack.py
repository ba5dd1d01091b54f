"""stack joins stacks of some sections each to what one montage of all of them would be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from happyneurons.acquisition.phantom import make_phantom
from happyneurons.acquisition.simulate import simulate_acquisition
from happyneurons.client.results import open_result
from happyneurons.errors import UserError
from happyneurons.imaging.transforms import MontageTransforms
from happyneurons.store.artifacts import Artifact, Bounds, Manifest, artifact_uri, load_artifact, manifest_path
from happyneurons.store.documents import Store
from happyneurons.store.volumes import create_volume, open_volume
from happyneurons.worker.local import run_stage

from .batches import section_of, write_batch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sections 2 to 6 of two tiles each; 5 was never imaged."""
    folder = tmp_path_factory.mktemp("scope")
    with h5py.File(folder / "em.h5", "w") as f:
        f["em"] = make_phantom((8, 160, 224), seed=3).image
        f["em"].attrs["voxel_size_nm_xyz"] = (8.0, 8.0, 40.0)
    simulate_acquisition(
        f"h5://{folder}/em.h5?em", folder / "a", sections=(2, 7), tiles=(2, 1), faults={5: "missing_section"}
    )
    return folder / "a"


def montage(store: Store, folder: Path, *numbers: int, shift_px: int = 0) -> Artifact:
    """A montage of some sections, which lie elsewhere on the stage by a number of pixels."""

    def change(section: dict[str, Any]) -> None:
        for tile in section["tiles"]:
            tile["x_nm"] += shift_px * section["pixel_size_nm"]

    name = "-".join(map(str, [*numbers, shift_px]))
    source = write_batch(store, name, [section_of(folder, z) for z in numbers], change)
    tiles = run_stage(store, "ingest", params={"source": source}).outputs["tiles"]
    # Of few sections, each batch would find optics of its own.
    made = run_stage(store, "montage", inputs={"tiles": tiles.uri}, params={"optics_sections": 0})
    assert made.metrics["sections_ok"] == len(numbers)
    return load_artifact(made.outputs["stack"].uri)


def stack(store: Store, *stacks: Artifact | str) -> tuple[Artifact, Manifest]:
    uris = [s if isinstance(s, str) else s.uri for s in stacks]
    manifest = run_stage(store, "stack", inputs={"stacks": uris})
    return load_artifact(manifest.outputs["stack"].uri), manifest


def pictures(artifact: Artifact, name: str = "image") -> np.ndarray:
    volume = open_volume(f"{artifact.data_uri}/{name}")
    return volume.read(volume.start_zyx, volume.stop_zyx)


def status(artifact: Artifact) -> dict[int, str]:
    found = [artifact.store().get_json(path) for path in artifact.store().list("sections")]
    return {d["z"]: d["status"] for d in sorted(found, key=lambda d: d["z"])}


def test_joined_montages_are_the_montage_of_all(store: Store, folder: Path) -> None:
    joined, manifest = stack(store, montage(store, folder, 6, 2), montage(store, folder, 4, 3))
    whole = montage(store, folder, 2, 3, 4, 6)
    np.testing.assert_array_equal(pictures(joined), pictures(whole))
    assert pictures(joined).any(axis=(1, 2)).tolist() == [True, True, True, False, True]
    assert joined.bounds == whole.bounds
    assert joined.voxel_size_nm_xyz == whole.voxel_size_nm_xyz
    assert list(joined.properties["origin_px"]) == list(whole.properties["origin_px"])
    for z in (2, 3, 4, 6):
        for path in (f"sections/{z:06d}.json", f"transforms/{z:06d}.npz"):
            assert joined.store().get(path) == whole.store().get(path)
    assert status(joined) == {2: "ok", 3: "ok", 4: "ok", 5: "missing", 6: "ok"}
    assert manifest.metrics["sections_missing"] == 1


def test_canvases_that_differ_are_brought_to_one(store: Store, folder: Path) -> None:
    """Section 3 lies 37 px to the right on the stage, section 4 as far to the left of section 2."""
    parts = [montage(store, folder, z, shift_px=shift) for z, shift in ((2, 0), (3, 37), (4, -37))]
    joined, _ = stack(store, *parts)
    assert joined.bounds is not None
    assert parts[0].bounds is not None
    width, height = parts[0].bounds.shape_zyx[2], parts[0].bounds.shape_zyx[1]
    assert joined.bounds.maximum_xyz == (width + 74, height, 5)
    whole = pictures(joined)
    for part, z, left in zip(parts, (2, 3, 4), (37, 74, 0), strict=True):
        picture = whole[z - 2]
        np.testing.assert_array_equal(picture[:, left : left + width], pictures(part)[0])
        assert np.count_nonzero(picture) == np.count_nonzero(pictures(part))
        place = np.array([[30.0, 40.0]])
        before, after = (MontageTransforms(a).map(z, (0, 0), place) for a in (part, joined))
        assert before is not None
        assert after is not None
        np.testing.assert_allclose(after - before, [[left, 0]], atol=1e-9)
        for opened, expected in ((open_result(part.uri), before), (open_result(joined.uri), after)):
            np.testing.assert_array_equal(opened.map(z, (0, 0), place), expected)


def publish(
    store: Store, name: str, sections: dict[int, tuple[str, int]], mask: bool = False, **changes: Any
) -> str:  # fmt: skip
    """A stack of flat sections: z → (status, grey value)."""
    key = name * 40
    data = Store(store.url(f"artifacts/{key}/stack"))
    z0, z1 = min(sections), max(sections) + 1
    for part in ("image", "mask") if mask else ("image",):
        volume = create_volume(
            data.url(part), start_zyx=(z0, 0, 0), stop_zyx=(z1, 20, 30), voxel_size_nm_xyz=(8, 8, 40),
            dtype="uint8", layer_type="image", chunk_zyx=(1, 1024, 1024),
        )  # fmt: skip
        for z, (_, grey) in sections.items():
            plane = np.full((1, 20, 30), grey, np.uint8)
            if part == "mask":
                plane[...] = 1
                plane[:, :, :10] = 0
            volume.write((z, 0, 0), plane)
    for z, (state, _) in sections.items():
        data.put_json(f"sections/{z:06d}.json", {"z": z, "status": state})
    fields: dict[str, Any] = {"voxel_size_nm_xyz": (8, 8, 40), "properties": {"mask": mask}, **changes}
    artifact = Artifact(
        kind="section_stack", uri=artifact_uri(store, key, "stack"), data_uri=data.uri, digest=name,
        bounds=Bounds(minimum_xyz=(0, 0, z0), maximum_xyz=(30, 20, z1)), **fields,
    )  # fmt: skip
    manifest = Manifest(
        job_key=key, stage="x", stage_version="1", params={}, inputs={}, outputs={"stack": artifact}, provenance={}
    )
    store.put_json(manifest_path(key), manifest.model_dump(mode="json"))
    return artifact.uri


def test_the_later_stack_wins_and_a_picture_beats_none(store: Store) -> None:
    first = publish(store, "a", {0: ("ok", 10), 1: ("ok", 11), 2: ("missing", 0), 3: ("failed", 0)})
    second = publish(store, "b", {1: ("flagged", 21), 2: ("ok", 22), 3: ("missing", 0)})
    third = publish(store, "c", {0: ("failed", 0), 2: ("blank", 0)})
    joined, manifest = stack(store, first, second, third)
    assert pictures(joined)[:, 0, 0].tolist() == [10, 21, 22, 0]
    assert status(joined) == {0: "ok", 1: "flagged", 2: "ok", 3: "failed"}
    assert manifest.metrics["sections_ok"] == 2


def test_masks_are_kept_and_what_has_none_is_valid_where_it_has_a_picture(store: Store) -> None:
    joined, _ = stack(store, publish(store, "a", {0: ("ok", 9)}, mask=True), publish(store, "b", {1: ("ok", 9)}))
    assert joined.properties["mask"]
    masks = pictures(joined, "mask")
    assert masks[0, 0].tolist() == [0] * 10 + [1] * 20
    assert masks[1].all()


def test_sections_that_no_stack_has_are_missing(store: Store) -> None:
    joined, _ = stack(store, publish(store, "a", {3: ("ok", 9)}), publish(store, "b", {6: ("ok", 8)}))
    assert status(joined) == {3: "ok", 4: "missing", 5: "missing", 6: "ok"}
    assert pictures(joined)[:, 0, 0].tolist() == [9, 0, 0, 8]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"voxel_size_nm_xyz": (4, 4, 40)}, "they differ in voxel size"),
        ({"properties": {"origin_px": [5, 5]}}, "some say where they lie on the stage"),
    ],
)
def test_stacks_that_do_not_fit_together_are_refused(store: Store, changes: dict[str, Any], expected: str) -> None:
    first, second = publish(store, "a", {0: ("ok", 9)}), publish(store, "b", {1: ("ok", 9)}, **changes)
    with pytest.raises(UserError, match=expected):
        stack(store, first, second)
