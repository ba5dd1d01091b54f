"""Objects of masks: the same in any blocks, told apart where they touch, joined where blocks cut them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from happyneurons.errors import UserError
from happyneurons.metrics.segmentation import scores, truth_table
from happyneurons.stages.mask.objects import Window, classify
from happyneurons.stages.mask.params import ClassRule
from happyneurons.store.artifacts import Manifest
from happyneurons.store.documents import Store
from happyneurons.store.volumes import create_volume, open_volume
from happyneurons.worker.local import run_stage

SIZE_NM = (20.0, 20.0, 40.0)
SHAPE = (80, 150, 160)
RULE = {"instances": "watershed", "seed_distance_nm": 260, "max_diameter_nm": 800}


def balls() -> np.ndarray:
    """(z, y, x) labels of ellipsoids of 24 px across, some of which touch, some cut by blocks and faces."""
    centres = [(20, 40, 40), (20, 40, 62), (40, 64, 64), (40, 110, 128), (60, 128, 30), (60, 128, 53), (2, 100, 100)]
    z, y, x = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    labels, nearest = np.zeros(SHAPE, np.uint32), np.full(SHAPE, np.inf)
    for number, (cz, cy, cx) in enumerate(centres, 1):
        distance = (2 * (z - cz)) ** 2 + (y - cy) ** 2 + (x - cx) ** 2
        own = (distance < 12**2) & (distance < nearest)
        labels[own], nearest[own] = number, distance[own]
    return labels


def put(root: Path, name: str, array: np.ndarray, size: Any = SIZE_NM, start: Any = (0, 0, 0)) -> str:
    uri = Store(str(root)).url(name)
    volume = create_volume(
        uri, start_zyx=start, stop_zyx=np.add(start, array.shape), voxel_size_nm_xyz=size, dtype=str(array.dtype),
        layer_type="image" if array.dtype == np.uint8 else "segmentation",
    )  # fmt: skip
    volume.write(start, array)
    return uri


def read(manifest: Manifest, output: str) -> np.ndarray:
    volume = open_volume(manifest.outputs[output].data_uri)
    return volume.read(volume.start_zyx, volume.stop_zyx)


def make(tmp_path: Path, probability: str, rule: dict[str, Any], **params: Any) -> Manifest:
    return run_stage(
        Store(str(tmp_path / "store")), "mask", inputs={"probability": probability},
        params={"classes": {"body": rule}, "num_mips": 1, **params},
    )  # fmt: skip


@pytest.fixture(scope="module")
def bodies(tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, str]:
    labels = balls()
    probability = np.where(labels > 0, 240, 10).astype(np.uint8)
    return labels, put(tmp_path_factory.mktemp("bodies"), "probability", probability, start=(3, 5, 7))


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether labels are equal but for their numbers."""
    pairs = np.unique(np.stack([a.ravel(), b.ravel()]).astype(np.int64), axis=1)
    return all(len(np.unique(side)) == pairs.shape[1] for side in pairs)


@pytest.mark.parametrize("edge", [64, 192])
def test_bodies_that_touch_are_told_apart_in_blocks_of_any_size(bodies, tmp_path, edge):
    truth, uri = bodies
    manifest = make(tmp_path, uri, RULE, object_block_size_xyz=(edge, edge, edge))
    found = read(manifest, "instances")
    assert manifest.metrics["body_objects"] == truth.max() == len(np.unique(found)) - 1
    assert scores(truth_table(found, truth)).adapted_rand_error < 0.01
    assert ((found > 0) == (truth > 0)).all()
    assert manifest.metrics["unreached_fraction"] == 0
    table = Store(manifest.outputs["objects"].data_uri).get_json("table.json")
    for number, _, voxels, x, y, z in table["rows"]:
        inside = found == number
        assert inside.sum() == voxels
        assert found[z - 3, y - 5, x - 7] == number
    coarse = open_volume(manifest.outputs["mask"].data_uri, 1)
    assert coarse.voxel_size_nm_xyz == (40.0, 40.0, 40.0)
    assert coarse.read(coarse.start_zyx, coarse.stop_zyx).any()


def test_connected_parts_are_joined_across_blocks(tmp_path):
    tube = np.zeros((70, 130, 140), np.uint8)
    for i in range(130):  # a diagonal that meets blocks at their edges
        tube[i // 2, i, i] = 255
    tube[10, 100:104, 20:24] = 255
    tube[40, 2, 2] = 255
    uri = put(tmp_path, "tube", tube)
    small = make(tmp_path, uri, {"instances": "components"}, object_block_size_xyz=(64, 64, 64), min_size_voxels=4)
    large = make(tmp_path, uri, {"instances": "components"}, object_block_size_xyz=(192, 192, 128), min_size_voxels=4)
    assert same(read(small, "instances"), read(large, "instances"))
    assert small.metrics["objects"] == 2
    assert small.metrics["dropped_objects"] == 1
    tube[40, 2, 2] = 0
    assert (read(small, "mask") == (tube > 0)).all()


@pytest.mark.slow
def test_seeds_by_hand_choose_the_objects(bodies, tmp_path):
    truth, uri = bodies
    csv = tmp_path / "seeds.csv"
    # Offsets of the volume: 7, 5, 3. Two points of one id grow one object.
    csv.write_text("id,x,y,z\na,47,45,23\nb,71,69,43\na,69,45,23\n")
    manifest = make(tmp_path, uri, RULE, seeds=str(csv))
    found = read(manifest, "instances")
    assert manifest.metrics["objects"] == 2
    assert same(found, np.select([np.isin(truth, [1, 2]), truth == 3], [1, 2], 0))
    assert ((read(manifest, "mask") > 0) == (found > 0)).all()
    csv.write_text("x_nm,y_nm,z_nm\n940,900,920\n")
    again = make(tmp_path, uri, RULE, seeds=str(csv))
    assert again.job_key != manifest.job_key
    # Nothing else has a seed; the ball that touches this one is flooded from it.
    assert same(read(again, "instances"), np.isin(truth, [1, 2]).astype(int))


def test_holes_and_smoothing(tmp_path):
    block = np.zeros((40, 90, 90), np.uint8)
    block[5:35, 20:80, 20:80] = 255
    block[15:18, 62:67, 62:66] = 0  # on the border of two blocks
    block[20:22, 30:70, 30:32] = 0  # too large
    uri = put(tmp_path, "block", block)
    filled = read(make(tmp_path, uri, {"fill_holes_voxels": 60}, object_block_size_xyz=(64, 64, 64)), "mask")
    assert filled[15:18, 62:67, 62:66].all()
    assert not filled[20:22, 30:70, 30:32].any()
    smooth = make(tmp_path, uri, {"smooth_nm": 60}, object_block_size_xyz=(64, 64, 64))
    assert (read(smooth, "mask") == read(make(tmp_path, uri, {"smooth_nm": 60}), "mask")).all()
    assert read(smooth, "mask")[16, 64, 64]
    assert not read(smooth, "mask")[5, 20, 20]


@pytest.mark.parametrize(
    ("inputs", "params", "words"),
    [
        ({}, {}, "give the input image"),
        ({"image": "uri"}, {}, "there is no input model"),
        ({"probability": "uri", "image": "uri"}, {}, "not both"),
        ({"probability": "uri"}, {"classes": {"body": RULE, "nothing": {}}}, "names nothing"),
        ({"probability": "uri"}, {"classes": {"body": {}}, "seeds": "here.csv"}, "no class grows objects"),
        ({"probability": "uri"}, {"object_block_size_xyz": (100, 64, 64)}, "multiples of 64"),
        ({"probability": "uri"}, {"bounds_xyz": ((0, 0, 0), (50, 50, 50))}, "do not lie within"),
        ({"image": "uri"}, {"method": "tissue", "mip": 3}, "no mip level 3"),
    ],
)
def test_wrong_requests_are_refused(bodies, tmp_path, inputs, params, words):
    (tmp_path / "here.csv").write_text("x,y,z\n1,2,3\n")
    if "seeds" in params:
        params = {**params, "seeds": str(tmp_path / "here.csv")}
    with pytest.raises(UserError, match=words):
        run_stage(
            Store(str(tmp_path / "store")), "mask", inputs=dict.fromkeys(inputs, bodies[1]), params=params
        )  # fmt: skip


def test_points_far_away_are_refused(bodies, tmp_path):
    csv = tmp_path / "seeds.csv"
    csv.write_text("x,y,z\n1,2,3\n")
    with pytest.raises(UserError, match="none of the 1 points"):
        make(tmp_path, bodies[1], RULE, seeds=str(csv))


def test_grey_values_without_training(tmp_path):
    rng = np.random.default_rng(3)
    image = rng.normal(128, 20, (2, 100, 128)).clip(0, 255).astype(np.uint8)
    image[:, :, 90:] = 127  # resin
    image[0, 40:70, 20:60] = 250  # charged
    uri = put(tmp_path, "image", image, (10.0, 10.0, 40.0))

    def mask(method: str) -> np.ndarray:
        manifest = run_stage(
            Store(str(tmp_path / "store")), "mask", inputs={"image": uri},
            params={"method": method, "window_nm": 90, "num_mips": 0, "block_size_xyz": (64, 64, 64)},
        )  # fmt: skip
        return read(manifest, "mask")

    tissue, bright = mask("tissue"), mask("bright")
    assert tissue[1, :, :85].all()
    assert not tissue[1, :, 96:].any()
    assert bright[0, 45:65, 25:55].all()
    assert not bright[1].any()
    assert not mask("dark").any()


def test_growth_is_as_far_in_every_direction_and_the_same_in_blocks(tmp_path):
    block = np.zeros((40, 130, 90), np.uint8)
    block[20, 64, 62] = block[20, 63, 20] = 255
    block[5:15, 50:80, 40:80] = 255
    block[8:12, 60:68, 60:68] = 0  # a hole on the border of blocks, which growth makes smaller
    block[10, 64, 68:80] = 0  # and a gap that leads to it, which growth closes
    uri = put(tmp_path, "block", block)
    rule = {"grow_nm": 60, "fill_holes_voxels": 300}
    whole = read(make(tmp_path, uri, rule, object_block_size_xyz=(128, 192, 64)), "mask") > 0
    assert (whole == (read(make(tmp_path, uri, rule, object_block_size_xyz=(64, 64, 64)), "mask") > 0)).all()
    z, y, x = np.ogrid[:40, :130, :90]
    alone = (40.0 * (z - 20)) ** 2 + (20.0 * (y - 63)) ** 2 + (20.0 * (x - 20)) ** 2 <= 60.0**2
    assert (whole[:, :, :25] == alone[:, :, :25]).all()
    assert whole[5:15, 50:80, 40:80].all()


def test_where_two_classes_grow_the_nearer_one_comes_first():
    probability = np.zeros((2, 1, 1, 12), np.uint8)
    probability[0, 0, 0, 2] = probability[1, 0, 0, 9] = 255
    window = Window((0, 0, 0), (1, 1, 12), (0, 0, 0), (1, 1, 12))
    rules = (ClassRule(grow_nm=50), ClassRule(grow_nm=20))
    assert classify(probability, rules, (10, 10, 10), window).ravel().tolist() == [1] * 6 + [1, 2, 2, 2, 2, 2]
    equal = (ClassRule(grow_nm=80), ClassRule(grow_nm=80))
    assert classify(probability, equal, (10, 10, 10), window).ravel().tolist() == [1] * 6 + [2] * 6
    stays = (ClassRule(grow_nm=500), ClassRule())
    assert classify(probability, stays, (10, 10, 10), window).ravel().tolist() == [1] * 9 + [2] + [1] * 2
