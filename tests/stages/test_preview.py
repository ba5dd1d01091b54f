"""Pictures: the right pixels in them, stable colours, cuts with the right aspect, a valid notebook."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from happyneurons.errors import UserError
from happyneurons.stages.preview.colors import color_of
from happyneurons.stages.preview.neurons import PAPER_RGB, render
from happyneurons.stages.preview.planes import plane
from happyneurons.stages.preview.png import png, read_png
from happyneurons.stages.preview.tiles import tile_grid
from happyneurons.store.artifacts import Manifest
from happyneurons.store.documents import Store
from happyneurons.store.volumes import create_volume, open_volume
from happyneurons.worker.local import run_stage


def write(folder: Path, array: np.ndarray, kind: Any, voxel_nm: tuple[float, float, float] = (10, 10, 10)) -> str:
    volume = create_volume(
        folder.as_uri(), start_zyx=(0, 0, 0), stop_zyx=array.shape, voxel_size_nm_xyz=voxel_nm,
        dtype=str(array.dtype), layer_type=kind, chunk_zyx=(32, 32, 32),
    )  # fmt: skip
    volume.write((0, 0, 0), array)
    return folder.as_uri()


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> tuple[str, str]:
    import h5py

    folder = tmp_path_factory.mktemp("fib25")
    with h5py.File(shared_data / "fib25" / "em.h5") as em, h5py.File(shared_data / "fib25/labels_z000-128.h5") as gt:
        image = em["em"][0:32, 50:178, 50:146]
        labels = gt["labels"][0:32, 50:178, 50:146].astype(np.uint64)
    labels[:, :20, :20] = 0
    return write(folder / "em", image, "image"), write(folder / "labels", labels, "segmentation")


def pictures(manifest: Manifest) -> dict[str, np.ndarray]:
    store = manifest.outputs["pictures"].store()
    listed = store.get_json("index.json")["pictures"]
    found = {entry["file"]: read_png(store.get(entry["file"])) for entry in listed}
    for entry in listed:
        assert found[entry["file"]].shape[:2] == (entry["height"], entry["width"])
    return found


def test_pictures_of_an_image_its_segments_and_its_neurons(tmp_path: Path, real: tuple[str, str]) -> None:
    image, labels = real
    store = Store(tmp_path.as_uri())
    meshes = run_stage(
        store, "mesh", inputs={"segmentation": labels}, params={"block_size_xyz": [64, 64, 32], "max_error_nm": 20}
    )
    inputs: dict[str, list[str]] = {"results": [image, labels, meshes.outputs["mesh"].uri]}
    manifest = run_stage(store, "preview", inputs=inputs, params={"max_px": 256, "samples": 2, "neurons": 8})
    found = pictures(manifest)
    assert {"00_image_volume_xy_000008.png", "00_image_volume_xz_000064.png", "01_segmentation_yz_000048.png",
            "01_segmentation_sheet.png", "02_mesh_layer_neurons.png"} <= set(found)  # fmt: skip
    section = open_volume(image).read((8, 0, 0), (9, 128, 96))[0]
    np.testing.assert_array_equal(found["00_image_volume_xy_000008.png"][..., 0], section)
    truth = open_volume(labels).read((8, 0, 0), (9, 128, 96))[0]
    colored = found["01_segmentation_xy_000008.png"].astype(int)
    grey = colored.max(2) - colored.min(2)
    assert grey[truth > 0].mean() > 25, "segments are in colour"
    assert grey[truth == 0].max() == 0, "what is no segment is grey"
    neurons = found["02_mesh_layer_neurons.png"]
    drawn = (np.abs(neurons.astype(int) - PAPER_RGB).sum(2) > 60).mean()
    assert 0.1 < drawn < 0.9
    notebook = json.loads(manifest.outputs["pictures"].store().get("preview.ipynb"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            compile("".join(cell["source"]), cell["id"], "exec")


def test_cuts_have_isotropic_pixels(tmp_path: Path) -> None:
    array = np.zeros((10, 64, 64), np.uint8)
    array[5:] = 200
    volume = open_volume(write(tmp_path / "v", array, "image", (8, 8, 40)))
    cut = plane(volume, "xz", 32, 64, labels=False)
    assert cut.shape == (50, 64)
    assert (cut[:25] == 0).all()
    assert (cut[25:] == 200).all()


def test_images_are_averaged_and_labels_are_not(tmp_path: Path) -> None:
    checks = (np.indices((1, 64, 64)).sum(0) % 2 * 200).astype(np.uint8)
    image = open_volume(write(tmp_path / "i", checks, "image"))
    labels = open_volume(write(tmp_path / "l", checks.astype(np.uint64), "segmentation"))
    assert set(np.unique(plane(image, "xy", 0, 16, labels=False))) == {100}
    assert set(np.unique(plane(labels, "xy", 0, 16, labels=True))) <= {0, 200}


def test_tiles_stand_in_their_rows_and_columns_and_damage_is_marked(tmp_path: Path) -> None:
    tiles = []
    for row, column, value in ((0, 0, 50), (0, 1, 90), (1, 0, 130)):
        path = tmp_path / f"{row}{column}.png"
        path.write_bytes(png(np.full((40, 60), value, np.uint8)))
        tiles.append({"row": row, "col": column, "uri": path.as_uri(), "width": 60, "height": 40})
    (tmp_path / "11.png").write_bytes(b"no picture")
    tiles.append({"row": 1, "col": 1, "uri": (tmp_path / "11.png").as_uri(), "width": 60, "height": 40})
    grid = tile_grid({"tiles": tiles}, 1000)
    h, w = grid.shape
    assert [int(grid[h // 4, w // 8]), int(grid[h // 4, w - 9]), int(grid[h - 9, w // 8])] == [50, 90, 130]
    assert 160 in grid[h // 2 + 4 :, w // 2 + 4 :]


def test_colours_belong_to_ids() -> None:
    ids = np.arange(1, 2000, dtype=np.uint64)
    colors = color_of(ids)
    np.testing.assert_array_equal(color_of(ids[::-1])[::-1], colors)
    assert len(np.unique(colors, axis=0)) > 1900
    assert colors.max(1).min() > 150
    assert color_of(np.array([0])).max() == 0


def test_the_nearer_neuron_hides_the_farther_one() -> None:
    square = np.array([[0, 0, 0], [1000, 0, 0], [1000, 0, 1000], [0, 0, 1000]], float)
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    # Seen along +y (turn 0, height 0): the square at y = 0 is in front of the one at y = 500.
    picture = render({1: (square, faces), 2: (square + [0, 500, 0], faces)}, width_px=120, height_px=120,
                     view_degrees=(0.0, 0.0))  # fmt: skip
    hue = picture[60, 60].astype(float) - picture[60, 60].min()
    expected = color_of(np.array([1]))[0].astype(float)
    expected -= expected.min()
    assert np.corrcoef(hue, expected)[0, 1] > 0.99
    assert tuple(picture[2, 2]) == PAPER_RGB


def test_nothing_to_draw_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="results"):
        run_stage(Store(tmp_path.as_uri()), "preview", inputs={"results": []})


def test_a_sheet_is_readable_as_png(tmp_path: Path) -> None:
    data = png(np.zeros((3, 5, 3), np.uint8))
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert read_png(io.BytesIO(data).getvalue()).shape == (3, 5, 3)


def test_figures_tables_curves_and_skeletons_are_drawn(tmp_path: Path) -> None:
    from happyneurons.stages.preview.charts import curves, figures, table_picture
    from happyneurons.stages.preview.skeletons import render_skeletons

    rows = [{"step": s, "loss": 2.0 / (s + 1), "f1": s / 10} for s in range(10)]
    drawn = curves(rows, 400, 200)
    assert drawn is not None
    assert drawn.shape == (200, 400, 3)
    assert np.ptp(drawn[40:150, 60:340].reshape(-1, 3), axis=0).min() > 60, "lines, not paper alone"
    assert curves([], 400, 200) is None
    assert curves([{"step": 1, "name": "x"}], 400, 200) is None
    assert list(figures({"a": {"b": 1, "c": "x"}, "d": 0.5, "e": [1], "f": True})) == [("a.b", 1.0), ("d", 0.5)]
    short, long = (table_picture(["id", "size"], [[i, i * i] for i in range(n)]) for n in (3, 500))
    assert short.shape[0] < long.shape[0] < 1500, "a long table is cut, and says so"
    line = {5: (np.array([[0, 0, 0], [500, 300, 200]], float), np.array([[0, 1]]))}
    picture = render_skeletons(line, width_px=200, height_px=150)
    assert (np.abs(picture.astype(int) - color_of(np.array([5]))[0]).max(axis=2) < 30).sum() > 50
    assert np.ptp(render_skeletons({}, width_px=40, height_px=30)) < 5


def test_a_model_is_drawn_by_its_training(tmp_path: Path) -> None:
    from happyneurons.demo.prepare import MODEL

    made = run_stage(Store(tmp_path.as_uri()), "preview", inputs={"results": str(MODEL)}, params={"max_px": 400})
    assert list(pictures(made)) == ["00_model_curves.png"]
