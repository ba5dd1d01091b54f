"""align: distortions go, oblique tissue stays, bad sections are bridged, the same bytes come out again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest

from happyneurons.errors import UserError
from happyneurons.imaging.transforms import AlignTransforms
from happyneurons.imaging.warp import GridWarp
from happyneurons.stages.align.coarse import MatchSettings, pyramid
from happyneurons.stages.align.matching import match_pair
from happyneurons.stages.align.prepare import ARTIFACT, TISSUE, stiffness, working_picture
from happyneurons.stages.align.render import draw_block
from happyneurons.stages.align.solve import SolveSettings, solve
from happyneurons.stages.align.system import Pair
from happyneurons.store.artifacts import Artifact, Bounds, Manifest, artifact_uri, load_artifact, manifest_path
from happyneurons.store.documents import Store, local_path
from happyneurons.store.volumes import create_volume, open_volume
from happyneurons.worker.local import run_stage

SECTIONS, SIZE = 20, 200
CORNER_XY = (40, -30)  # of the stack: coordinates are the volume's, offset included
Z0 = 5
Warps = list[GridWarp]


@pytest.fixture(scope="module")
def tissue(shared_data: Path) -> np.ndarray:
    """Undisturbed FIB-SEM, 10 nm: 20 sections and 25 px around what the sections show."""
    with h5py.File(shared_data / "fib25/em.h5") as file:
        return np.asarray(file["em"][40 : 40 + SECTIONS, : SIZE + 50, : SIZE + 50])


@pytest.fixture(scope="module")
def distorted(tissue: np.ndarray) -> tuple[np.ndarray, Warps]:
    """Sections shifted by up to 6 px, turned by up to 1°, bent by 1.5 px (rms), with noise; and the truth.

    The truth maps px of the volume → px of the undisturbed volume of the same corner.
    """
    rng = np.random.default_rng(3)
    pictures, warps = [], []
    middle = (SIZE - 1) / 2
    for z in range(SECTIONS):
        angle = np.deg2rad(rng.uniform(-1, 1))
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        plain = GridWarp.identity(SIZE, SIZE, 25.0)
        bend = cv2.GaussianBlur(rng.standard_normal((30, 30, 2)), (0, 0), 3.0)
        bend = 1.5 * (bend / bend.std())[10 : 10 + plain.nodes.shape[0], 10 : 10 + plain.nodes.shape[1]]
        nodes = (plain.nodes - middle) @ turn.T + middle + rng.uniform(-6, 6, 2) + bend
        warp = plain.with_nodes(nodes)
        xy = np.stack(np.meshgrid(np.arange(SIZE), np.arange(SIZE)), axis=-1).reshape(-1, 2)
        field = (warp.map(xy) + 25).astype(np.float32).reshape(SIZE, SIZE, 2)
        drawn = cv2.remap(tissue[z], field[..., 0], field[..., 1], cv2.INTER_CUBIC).astype(np.float64)
        drawn = (drawn - 128) * rng.uniform(0.9, 1.1) + 128 + rng.uniform(-8, 8) + rng.normal(0, 5, drawn.shape)
        pictures.append(np.clip(np.rint(drawn), 1, 255).astype(np.uint8))
        warps.append(GridWarp(CORNER_XY, warp.spacing_px, warp.nodes + CORNER_XY))
    return np.stack(pictures), warps


def publish(
    store: Store, pictures: np.ndarray, statuses: Mapping[int, str] | None = None, mask: np.ndarray | None = None
) -> str:
    """Pictures as a published section_stack; sections without a picture are not written."""
    key = "0" * 40
    data = Store(store.url(f"artifacts/{key}/stack"))
    depth, height, width = pictures.shape
    start, stop = (Z0, CORNER_XY[1], CORNER_XY[0]), (Z0 + depth, CORNER_XY[1] + height, CORNER_XY[0] + width)
    for name, voxels in (("image", pictures), ("mask", mask)):
        if voxels is None:
            continue
        volume = create_volume(
            data.url(name), start_zyx=start, stop_zyx=stop, voxel_size_nm_xyz=(10, 10, 10), dtype="uint8",
            layer_type="image", chunk_zyx=(1, 1024, 1024),
        )  # fmt: skip
        for i in range(depth):
            if (statuses or {}).get(i) not in ("missing", "failed"):
                volume.write((Z0 + i, *start[1:]), voxels[i : i + 1])
    for i in range(depth):
        data.put_json(f"sections/{Z0 + i:06d}.json", {"z": Z0 + i, "status": (statuses or {}).get(i, "ok")})
    artifact = Artifact(
        kind="section_stack", uri=artifact_uri(store, key, "stack"), data_uri=data.uri, digest="d",
        voxel_size_nm_xyz=(10, 10, 10), bounds=Bounds(minimum_xyz=start[::-1], maximum_xyz=stop[::-1]),
        properties={"mask": mask is not None},
    )  # fmt: skip
    manifest = Manifest(
        job_key=key, stage="x", stage_version="1", params={}, inputs={}, outputs={"stack": artifact}, provenance={}
    )
    store.put_json(manifest_path(key), manifest.model_dump(mode="json"))
    return artifact.uri


def align(store: Store, stack: str, **params: Any) -> tuple[Manifest, Artifact]:
    manifest = run_stage(store, "align", inputs={"stack": stack}, params=params)
    return manifest, load_artifact(manifest.outputs["stack"].uri)


def status(stack: Artifact, i: int) -> str:
    return str(stack.store().get_json(f"sections/{Z0 + i:06d}.json")["status"])


def grid_points(margin: float = 25.0) -> np.ndarray:
    axis = np.arange(margin, SIZE - margin, 10.0)
    return np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2) + CORNER_XY


def errors(stack: Artifact, truth: Warps) -> tuple[np.ndarray, np.ndarray, float]:
    """Distances of the same tissue in adjacent sections, from the truth after one affine map, and the scale."""
    transforms = AlignTransforms(stack)
    points = grid_points()
    placed = [transforms.map(Z0 + i, warp.inverse(points)) for i, warp in enumerate(truth)]
    kept = [p for p in placed if p is not None]
    adjacent = np.concatenate([np.linalg.norm(b - a, axis=1) for a, b in pairwise(kept)])
    target, source = np.concatenate(kept), np.tile(points, (len(kept), 1))
    design = np.column_stack([source, np.ones(len(source))])
    fit = np.linalg.lstsq(design, target, rcond=None)[0]
    return adjacent, np.linalg.norm(design @ fit - target, axis=1), float(np.sqrt(np.linalg.det(fit[:2])))


def test_known_distortions_are_undone(store: Store, distorted: tuple[np.ndarray, Warps]) -> None:
    pictures, truth = distorted
    stack = publish(store, pictures)
    before = [warp.inverse(grid_points()) for warp in truth]
    assert np.median(np.linalg.norm(np.diff(before, axis=0), axis=2)) > 4
    manifest, aligned = align(store, stack)
    adjacent, absolute, scale = errors(aligned, truth)
    assert np.median(adjacent) < 0.5
    assert np.percentile(adjacent, 95) < 1.2
    assert np.median(absolute) < 1.5
    assert scale == pytest.approx(1, abs=0.005)
    assert manifest.metrics["scale_error"] < 1e-4
    assert manifest.metrics["sections_ok"] == SECTIONS
    assert manifest.metrics["pairs_ok"] == SECTIONS - 1
    assert aligned.properties["source"] == stack
    # What is drawn is what the transforms say.
    transforms, image = AlignTransforms(aligned), open_volume(f"{aligned.data_uri}/image")
    z = SECTIONS // 2
    drawn = image.read((Z0 + z, *image.start_zyx[1:]), (Z0 + z + 1, *image.stop_zyx[1:]))[0].astype(float)
    warp = transforms.warp(Z0 + z)
    assert warp is not None
    field = warp.inverse_field(*CORNER_XY, SIZE, SIZE, 4) - np.float32(CORNER_XY)
    expected = cv2.remap(pictures[z], field[..., 0], field[..., 1], cv2.INTER_CUBIC).astype(float)
    inner = np.s_[20:-20, 20:-20]
    assert np.abs(drawn[inner] - expected[inner]).mean() < 0.5


def test_undisturbed_tissue_stays(store: Store, tissue: np.ndarray) -> None:
    """The neurites of this volume run obliquely, by 0.4 px a section: nothing may be straightened."""
    pictures = np.ascontiguousarray(tissue[:, 25:-25, 25:-25])
    _, aligned = align(store, publish(store, pictures))
    transforms, points = AlignTransforms(aligned), grid_points()
    moved = [transforms.map(Z0 + i, points) for i in range(SECTIONS)]
    distance = np.concatenate([np.linalg.norm(m - points, axis=1) for m in moved if m is not None])
    assert np.percentile(distance, 95) < 0.8

    # Setting neighbours on top of each other would have sheared the stack.
    def picture(i: int) -> np.ndarray:
        return np.ascontiguousarray(pictures[i])

    flat = np.ones((SIZE, SIZE), np.float32)
    first, later = (pyramid(picture(i), flat, 1.5) for i in (4, 8))
    match = match_pair(first, later, MatchSettings())
    assert np.linalg.norm(np.median(match.b_xy - match.a_xy, axis=0)) > 0.8


def test_bad_sections_are_bridged(
    store: Store, distorted: tuple[np.ndarray, Warps], caplog: pytest.LogCaptureFixture
) -> None:
    pictures, truth = distorted[0].copy(), distorted[1]
    missing, blank, foreign = 4, 9, 14
    pictures[missing] = 0
    pictures[blank] = np.clip(np.random.default_rng(0).normal(130, 6, pictures[blank].shape), 0, 255)
    pictures[foreign] = np.rot90(pictures[0])[::-1]
    mask = np.ones_like(pictures)
    mask[:, :, :8] = 0
    manifest, aligned = align(store, publish(store, pictures, {missing: "missing", 2: "flagged"}, mask))
    bad = {missing: "missing", blank: "blank", foreign: "failed", 2: "flagged"}
    assert {i: status(aligned, i) for i in bad} == bad
    assert manifest.metrics["sections_ok"] == SECTIONS - 4
    # The foreign section matches neither neighbour, those match each other.
    assert manifest.metrics["pairs_failed"] >= 2
    image, transforms = open_volume(f"{aligned.data_uri}/image"), AlignTransforms(aligned)
    for i in (missing, blank, foreign):
        assert transforms.map(Z0 + i, [[0.0, 0.0]]) is None
        assert not image.read((Z0 + i, *image.start_zyx[1:]), (Z0 + i + 1, *image.stop_zyx[1:])).any()
        around = [transforms.map(Z0 + j, truth[j].inverse(grid_points())) for j in (i - 1, i + 1)]
        assert around[0] is not None
        assert around[1] is not None
        assert np.median(np.linalg.norm(around[1] - around[0], axis=1)) < 1.2
    adjacent, absolute, _ = errors(aligned, truth)
    assert np.median(adjacent) < 0.6
    # Across three gaps the drift of tissue is less well known.
    assert np.median(absolute) < 2.0
    assert aligned.properties["mask"]
    masks = open_volume(f"{aligned.data_uri}/mask")
    drawn = masks.read((Z0, *masks.start_zyx[1:]), (Z0 + 1, *masks.stop_zyx[1:]))
    assert 0.8 < drawn.mean() < 0.97


def test_same_bytes_again(tmp_path: Path, distorted: tuple[np.ndarray, Warps]) -> None:
    def files(name: str) -> dict[str, bytes]:
        store = Store(str(tmp_path / name))
        _, aligned = align(store, publish(store, distorted[0][:6]))
        folder = local_path(aligned.data_uri)
        assert folder is not None
        return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}

    first, second = files("a"), files("b")
    assert sorted(first) == sorted(second)
    assert [name for name in first if first[name] != second[name]] == []


def test_anchor_and_margin(store: Store, distorted: tuple[np.ndarray, Warps]) -> None:
    stack = publish(store, distorted[0][:6])
    _, aligned = align(store, stack, anchor=Z0 + 3, margin_px=12)
    moved = AlignTransforms(aligned).map(Z0 + 3, grid_points(0.0))
    assert moved is not None
    # Only its own bending is left: no shift, no rotation.
    offset = moved - grid_points(0.0)
    assert np.abs(offset.mean(axis=0)).max() < 0.3
    centred = grid_points(0.0) - grid_points(0.0).mean(axis=0)
    turn = (centred[:, 0] * offset[:, 1] - centred[:, 1] * offset[:, 0]).sum() / (centred**2).sum()
    assert abs(np.rad2deg(turn)) < 0.1
    assert aligned.bounds is not None
    assert aligned.bounds.minimum_xyz == (CORNER_XY[0] - 12, CORNER_XY[1] - 12, Z0)
    with pytest.raises(UserError, match="section 99 is not in the stack"):
        align(store, stack, anchor=99)


def test_a_single_section_stays(store: Store, distorted: tuple[np.ndarray, Warps]) -> None:
    manifest, aligned = align(store, publish(store, distorted[0][:1]))
    assert manifest.metrics["sections_ok"] == 1
    moved = AlignTransforms(aligned).map(Z0, grid_points())
    assert moved is not None
    np.testing.assert_allclose(moved, grid_points(), atol=1e-3)
    image = open_volume(f"{aligned.data_uri}/image")
    np.testing.assert_array_equal(image.read(image.start_zyx, image.stop_zyx)[0], distorted[0][0])


def test_a_stack_without_pictures_says_so(store: Store, distorted: tuple[np.ndarray, Warps]) -> None:
    statuses = dict.fromkeys(range(3), "failed")
    with pytest.raises(UserError, match="no section"):
        align(store, publish(store, distorted[0][:3], statuses))


# --- the parts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("angle_deg", "shift"), [(0.0, (0.0, 0.0)), (4.0, (9.0, -14.0)), (-3.0, (-17.5, 3.25))])
def test_pairs_are_found_to_a_fraction_of_a_pixel(
    tissue: np.ndarray, angle_deg: float, shift: tuple[float, float]
) -> None:
    turn = cv2.getRotationMatrix2D((99.5, 99.5), angle_deg, 1.0)
    turn[:, 2] += shift
    frame = np.array([[1, 0, 25], [0, 1, 25]], float)
    a = tissue[0, 25:-25, 25:-25]
    # b shows at q = turn(p) what a shows at p.
    whole = turn.copy()
    whole[:, 2] += 25 - turn[:, :2] @ frame[:, 2]
    b = cv2.warpAffine(tissue[0], whole, (250, 250), flags=cv2.INTER_CUBIC)[25:-25, 25:-25]
    flat = np.ones(a.shape, np.float32)
    match = match_pair(pyramid(a, flat, 1.5), pyramid(np.ascontiguousarray(b), flat, 1.5), MatchSettings())
    expected = match.a_xy @ turn[:, :2].T + turn[:, 2]
    assert match.found > 0.7
    assert np.median(np.linalg.norm(match.b_xy - expected, axis=1)) < 0.1


def test_unrelated_tissue_does_not_correlate(tissue: np.ndarray) -> None:
    flat = np.ones((SIZE, SIZE), np.float32)
    a, b = (pyramid(np.ascontiguousarray(p[:SIZE, :SIZE]), flat, 1.5) for p in (tissue[0], np.rot90(tissue[-1])))
    assert match_pair(a, b, MatchSettings()).coarse_score < 0.2


def synthetic_pairs(move: Callable[[int, np.ndarray], np.ndarray], sections: int, size: int) -> list[Pair]:
    """Exact correspondences of sections whose px p shows tissue at move(z, p)."""
    axis = np.arange(8.0, size, 16.0)
    points = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    pairs = []
    for a in range(sections - 1):
        # p in a and q in a + 1 show the same tissue: a fixed point of q = p + move(a, p) - move(a + 1, q).
        q = points.copy()
        for _ in range(50):
            q = points + move(a, points) - move(a + 1, q)
        pairs.append(Pair(a, a + 1, points, q, np.ones(len(points))))
    return pairs


SETTINGS = SolveSettings(
    node_spacing_px=25, distortion_range_px=100, drift_px=0.25, drift_range_px=40, drift_persistence=0.88
)


def test_steady_drift_is_tissue() -> None:
    drift = np.array([0.3, -0.2])
    pairs = synthetic_pairs(lambda z, p: -drift * z + 0 * p, 40, 200)
    solution = solve(pairs, range(40), 200, 200, SETTINGS)
    displacement = [solution.nodes(k, 25) - solution.nodes(0, 25) for k in range(40)]
    # 39 sections would have been straightened by 14 px.
    assert np.abs(displacement).max() < 0.5


def test_steady_growth_is_tissue_however_much_sections_are_shifted_and_turned() -> None:
    """Nothing shrinks or shears a section by itself here: its scale is the tissue's, and must be left."""
    rng = np.random.default_rng(1)
    shift, turn = rng.normal(0, 5, (20, 2)), rng.normal(0, 0.03, 20)
    middle = np.array([99.5, 99.5])

    def move(z: int, p: np.ndarray) -> np.ndarray:
        from_middle = p - middle
        return shift[z] + turn[z] * from_middle[:, ::-1] * [-1, 1] - 1e-3 * z * from_middle

    solution = solve(synthetic_pairs(move, 20, 200), range(20), 200, 200, SETTINGS)
    scales = [np.sqrt(np.linalg.det(m[:, :2])) for m in solution.matrices]
    undone = np.polyfit(range(20), scales, 1)[0] / -1e-3
    assert abs(undone) < 0.1


def test_wrong_correspondences_have_no_say() -> None:
    rng = np.random.default_rng(0)
    jitter = rng.normal(0, 3, (30, 2))
    pairs = synthetic_pairs(lambda z, p: jitter[z] + 0 * p, 30, 200)
    clean = solve(pairs, range(30), 200, 200, SETTINGS)
    for pair in pairs:
        wrong = rng.random(len(pair.weight)) < 0.2
        pair.b_xy[wrong] += rng.uniform(-8, 8, (int(wrong.sum()), 2))
    spoilt = solve(pairs, range(30), 200, 200, SETTINGS)
    placed, expected = (np.stack([s.nodes(k, 25) for k in range(30)]) for s in (spoilt, clean))
    assert np.linalg.norm(expected - expected.mean(axis=0), axis=-1).mean() > 2
    assert np.median(np.linalg.norm(placed - expected, axis=-1)) < 0.15


def test_noise_does_not_shrink_the_stack() -> None:
    rng = np.random.default_rng(1)
    pairs = synthetic_pairs(lambda z, p: 0 * p, 60, 200)
    for pair in pairs:
        pair.b_xy[:] += rng.normal(0, 1.5, pair.b_xy.shape)
    solution = solve(pairs, range(60), 200, 200, SETTINGS)
    width = [np.ptp(solution.nodes(k, 25)[0, ..., 0], axis=1).mean() for k in range(60)]
    assert np.mean(width) == pytest.approx(200, abs=0.2)


def test_folds_and_margins_are_told_from_tissue(tmp_path: Path, tissue: np.ndarray) -> None:
    picture = tissue[0].copy()
    picture[:, 100:109] = 8
    picture[:30] = 0
    volume = create_volume(
        tmp_path.as_uri(), start_zyx=(0, 0, 0), stop_zyx=(1, *picture.shape), voxel_size_nm_xyz=(10, 10, 10),
        dtype="uint8", layer_type="image", chunk_zyx=(1, 1024, 1024),
    )  # fmt: skip
    volume.write((0, 0, 0), picture[np.newaxis])
    found = working_picture(volume, None, 0, 1)
    assert (found.kind[40:, 101:108] == ARTIFACT).all()
    assert not found.kind[:28].any()
    assert (found.kind[40:, 115:] == TISSUE).mean() > 0.9
    assert not found.blank(3.0)
    small = working_picture(volume, None, 0, 2)
    assert small.image.shape == (125, 125)
    assert (small.kind[20:, 51:54] == ARTIFACT).all()


def test_a_gap_changes_the_working_picture_only_where_it_is(tmp_path: Path, tissue: np.ndarray) -> None:
    picture = np.maximum(tissue[:2].copy(), 1)
    picture[1, 100:104, 60:64] = 0
    volume = create_volume(
        tmp_path.as_uri(), start_zyx=(0, 0, 0), stop_zyx=picture.shape, voxel_size_nm_xyz=(10, 10, 10),
        dtype="uint8", layer_type="image", chunk_zyx=(1, 1024, 1024),
    )  # fmt: skip
    volume.write((0, 0, 0), picture)
    whole, gap = (working_picture(volume, None, z, 1) for z in (0, 1))
    np.testing.assert_array_equal(whole.image, picture[0])
    np.testing.assert_array_equal(gap.image, picture[1])
    halved = working_picture(volume, None, 1, 2)
    assert not halved.kind[50:52, 30:32].any()
    assert np.count_nonzero(halved.kind == 0) == 4
    means = picture[1].reshape(125, 2, 125, 2).mean(axis=(1, 3))
    assert np.abs(halved.image - means).max() <= 0.5


@pytest.mark.parametrize("factor", [1, 3])
def test_wide_artifacts_loosen_the_nodes_in_them(factor: int) -> None:
    kind = np.full((-(-401 // factor), -(-603 // factor)), TISSUE, np.uint8)
    kind[:, 280 // factor : 320 // factor] = ARTIFACT
    found = stiffness(kind, factor, (5, 7), 100.0)
    assert (found[:, 3] < 0.1).all()
    assert (np.delete(found, 3, axis=1) == 1).all()


@pytest.mark.parametrize("height", [1, 3, 9, 131])
def test_strips_of_tissue_are_matched_or_left_alone(height: int) -> None:
    rng = np.random.default_rng(1)
    noise = np.clip(cv2.GaussianBlur(rng.normal(128, 300, (height, 1171)), (0, 0), 2), 0, 255).astype(np.uint8)
    levels = [pyramid(image, np.ones(image.shape), 1.5) for image in (noise, np.roll(noise, 3, axis=1))]
    match = match_pair(*levels, MatchSettings())
    assert len(match.a_xy) == 0 or np.abs(np.median(match.b_xy - match.a_xy, axis=0) - [3, 0]).max() < 0.1


def test_zero_stays_no_picture(tmp_path: Path) -> None:
    picture = np.full((1, 60, 60), 2, np.uint8)
    picture[:, 20:40, 20:40] = 250
    picture[:, :, :10] = 0
    volume = create_volume(
        tmp_path.as_uri(), start_zyx=(0, 0, 0), stop_zyx=picture.shape, voxel_size_nm_xyz=(10, 10, 10),
        dtype="uint8", layer_type="image", chunk_zyx=(1, 1024, 1024),
    )  # fmt: skip
    volume.write((0, 0, 0), picture)
    drawn, _ = draw_block(volume, None, 0, GridWarp.translation((5, 3), 60, 60), (0, 0, 70, 70), "cubic")
    assert not drawn[:, :15].any()
    assert not drawn[:3].any()
    assert not drawn[:, 65:].any()
    # Cubic interpolation undershoots beside bright places: still tissue.
    assert (drawn[3:63, 15:65] > 0).all()
    np.testing.assert_array_equal(drawn[3:63, 15:65], np.maximum(picture[0, :, 10:], 1))


def test_tissue_beside_a_fold_goes_home_on_either_side(store: Store, distorted: tuple[np.ndarray, Warps]) -> None:
    """A fold hides 6 px of tissue: its sides have moved towards each other."""
    pictures, truth = distorted[0].copy(), distorted[1]
    i, at, hidden = 9, 100, 6
    whole = pictures[i].copy()
    pictures[i][:, at:-hidden] = whole[:, at + hidden :]
    pictures[i][:, -hidden:] = 0
    pictures[i][:, at - 4 : at + 4] = 10
    _, aligned = align(store, publish(store, pictures))
    transforms = AlignTransforms(aligned)
    y, x = np.mgrid[30:170:5, 0:200:4]
    px = np.stack([x, y], axis=-1).reshape(-1, 2).astype(float)
    for side in (-1, 1):
        beside = px[(side * (px[:, 0] - at) > 12) & (side * (px[:, 0] - at) < 50)]
        was = beside + [hidden, 0] if side > 0 else beside
        here = transforms.map(Z0 + i, beside + CORNER_XY)
        places = truth[i].map(was + CORNER_XY)
        there = [transforms.map(Z0 + j, truth[j].inverse(places)) for j in (i - 1, i + 1)]
        off = np.linalg.norm(here - np.mean(there, axis=0), axis=1)
        assert np.median(off) < 0.6
        assert np.percentile(off, 95) < 2.0
