"""FEABAS (https://github.com/YuelongWu/feabas) as a peer of benchmarks/serial_sections.py.

FEABAS runs in its own Python, never in ours; its wheel has neither its scripts nor its configs, so a checkout is needed
for those:

    git clone https://github.com/YuelongWu/feabas
    python3.11 -m venv feabas-venv && feabas-venv/bin/pip install feabas==3.0.6

Its own scripts are run, in the order of its README and without rendering: `stitch_main` matching, optimization on the
tiles; `thumbnail_main` downsample, match, optimization and `align_main` matching, optimization on the benchmark's own
sections (given as sections that are stitched already). One worker, one thread. Its defaults are kept, but for what its
README tells users to fit to their data: the pixel size, the level of the thumbnails (no high pass at so small a level),
and, in ALIGN, the level of the fine matching and the spacing of meshes and matches, whose defaults are made for
sections of many thousand px. ALIGN was chosen among seven on other data (seed 0, 6 sections, thumbnails at level 2):
adjacent_px 5.6/13.9, with FEABAS's defaults 8.0/18.6; matching at full size gave 5.5/13.8 for 2.7 times the CPU seconds
of that step. Thumbnails at level 3 (260 px; its README advises 500–4000 px) gave 5.8/13.4 there in fewer CPU seconds,
so that is what runs here.

The blank section is not pointed out to FEABAS: it compares neighbours and next neighbours by default
(`compare_distance: 2`), so a section without matches is bridged. Folds and dirt are not masked.

CPU seconds are those of its processes after the start (imports: some seconds each): reading, matching, solving, but no
rendering, and not `downsample`, which renders the smaller pictures through a mesh when the sections are plain pictures
(they are by default stored in another format, which is averaged). `cpu_s` has them by stage, that one too;
`cpu_s_with_start` has everything.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from scipy.ndimage import map_coordinates

STEP = 8.0  # px between the points at which FEABAS's maps are sampled: far less than a side of its triangles
THUMBNAIL_MIP = 3
PREPARATION = "thumbnail_main downsample"  # a stage that is not counted

GENERAL = """
working_directory: {work}
cpu_budget: 1
parallel_framework: process
full_resolution: {pixel_size_nm}
section_thickness: {thickness_nm}
"""

STITCH: dict[str, Any] = {
    "matching": {"num_workers": 1},
    "optimization": {"num_workers": 1},
    "rendering": {"driver": "image", "num_workers": 1},  # how the sections that alignment reads are stored
}
THUMBNAIL: dict[str, Any] = {
    "thumbnail_mip_level": THUMBNAIL_MIP,
    "downsample": {"num_workers": 1, "thumbnail_highpass": False},
    "alignment": {"num_workers": 1},
}
ALIGN: dict[str, Any] = {
    "meshing": {"num_workers": 1, "mesh_size": 150},
    "matching": {"working_mip_level": 1, "matcher_config": {"num_workers": 1, "spacings": [200, 100]}},
    "optimization": {"num_workers": 1},
}

# Runs one of its scripts; what it imports is loaded before the clock starts.
STAGE = """
import json, resource, runpy, sys
import dask, cv2, matplotlib.tri, scipy.optimize, skimage.feature, tensorstore
from feabas import aligner, config, dal, matcher, mipmap, optimizer, renderer, stitcher, thumbnail
def cpu_s():
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in both)
out, script, *arguments = sys.argv[1:]
sys.argv = [script, *arguments]
before = cpu_s()
runpy.run_path(script, run_name="__main__")
with open(out, "w") as file:
    json.dump(cpu_s() - before, file)
"""

# Its results at the points of a grid: arguments: `tile` or `section`, the h5 files' folder, px, step, npz to write.
SAMPLE = """
import pathlib, sys
import numpy as np
from feabas import constant, stitcher
from feabas.mesh import Mesh
what, folder, size, step, resolution, out = sys.argv[1:]
axis = np.arange(0, int(size) + float(step), float(step))
axis[-1] = int(size)
grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
def sample(mesh):
    mesh.change_resolution(float(resolution))
    tid, weights = mesh.cart2bary(grid, constant.MESH_GEAR_INITIAL, extrapolate=True)
    return mesh.bary2cart(tid, weights, constant.MESH_GEAR_MOVING).reshape(len(axis), len(axis), 2)
found = {"axis": axis}
for path in sorted(pathlib.Path(folder).glob("*.h5")):
    if what == "section":
        found[path.stem] = sample(Mesh.from_h5(str(path)))
    else:
        section = stitcher.Stitcher.from_h5(str(path), load_matches=False, load_meshes=True)
        for name, mesh in zip(section.imgrelpaths, section.meshes):
            found[path.stem + "/" + pathlib.Path(name).stem] = sample(mesh)
np.savez(out, **found)
"""


class Feabas:
    """A working directory of FEABAS and the Python that runs it. Pixel size and thickness are those of the data."""

    def __init__(
        self, python: Path, checkout: Path, work: Path, pixel_size_nm: float = 2.5, thickness_nm: float = 30.0
    ) -> None:
        self.python, self.checkout, self.work = python.absolute(), checkout.resolve(), work
        self.pixel_size_nm, self.cpu_s_with_start = pixel_size_nm, 0.0
        self.cpu_s: dict[str, float] = {}  # by stage
        self._root = work / "feabas"  # FEABAS takes its general settings and defaults from `configs` where it runs
        (self._root / "configs").mkdir(parents=True)
        for default in (self.checkout / "configs").glob("default_*.yaml"):
            (self._root / "configs" / default.name).write_bytes(default.read_bytes())
        general = GENERAL.format(work=work, pixel_size_nm=pixel_size_nm, thickness_nm=thickness_nm)
        (self._root / "configs/general_configs.yaml").write_text(general)
        (work / "configs").mkdir()
        for name, settings in (("stitching", STITCH), ("thumbnail", THUMBNAIL), ("alignment", ALIGN)):
            self.configure(name, settings)

    def configure(self, name: str, settings: dict[str, Any]) -> None:
        """Settings beside FEABAS's defaults: of `stitching`, `thumbnail` or `alignment`."""
        (self.work / f"configs/{name}_configs.yaml").write_text(json.dumps(settings))  # JSON is YAML

    def counted_cpu_s(self) -> float:
        return sum(seconds for stage, seconds in self.cpu_s.items() if stage != PREPARATION)

    def version(self) -> str:
        command = "import importlib.metadata; print(importlib.metadata.version('feabas'))"
        return subprocess.run([self.python, "-c", command], check=True, capture_output=True, text=True).stdout.strip()

    def stage(self, script: str, mode: str) -> None:
        """One of its scripts; adds to `cpu_s` and `cpu_s_with_start`."""
        figure = self.work / "cpu_s.json"
        figure.unlink(missing_ok=True)
        before = children_cpu_s()
        path = str(self.checkout / f"scripts/{script}.py")
        self._run(STAGE, str(figure), path, "--mode", mode)
        self.cpu_s_with_start += children_cpu_s() - before
        self.cpu_s[f"{script} {mode}"] = json.loads(figure.read_text())

    def sample(self, what: str, folder: str, size: int) -> dict[str, np.ndarray]:
        """Grids (row, column, xy) of its results in that folder, by name; `axis` are the px of rows and columns."""
        out = self.work / "samples.npz"
        self._run(SAMPLE, what, str(self.work / folder), str(size), str(STEP), str(self.pixel_size_nm), str(out))
        with np.load(out) as found:
            return dict(found)

    def _run(self, code: str, *arguments: str) -> None:
        threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMEXPR")}
        subprocess.run(
            [self.python, "-c", code, *arguments], cwd=self._root, check=True, stdout=sys.stderr,
            env={**os.environ, **threads},
        )  # fmt: skip


def montage(
    feabas: Feabas, data: Path, tile_px: int
) -> Callable[[int, tuple[int, int], np.ndarray], np.ndarray | None]:
    """Stitch the tiles of a generated benchmark; the map (z, (row, column), tile px) → montage px."""
    folder = feabas.work / "stitch/stitch_coord"
    folder.mkdir(parents=True)
    sections: dict[int, list[str]] = {}
    for line in (data / "tiles.txt").read_text().splitlines():
        path, x, y, z = line.split("\t")
        sections.setdefault(int(z), []).append(f"{Path(path).name}\t{x}\t{y}")
    for section, tiles in sections.items():
        head = _head(data / f"tiles/z{section:03d}", feabas.pixel_size_nm, tile_px)
        (folder / f"z{section:03d}.txt").write_text("\n".join([*head, *tiles]) + "\n")
    for mode in ("matching", "optimization"):
        feabas.stage("stitch_main", mode)
    found = feabas.sample("tile", "stitch/tform", tile_px)
    return lambda z, tile, xy: _interpolated(found, f"z{z:03d}/t{tile[0]}{tile[1]}", xy)


def align(feabas: Feabas, data: Path, sections: int, size_px: int) -> Callable[[int, np.ndarray], np.ndarray | None]:
    """Align the sections of a generated benchmark; the map (z, section px) → aligned px."""
    masks = feabas.work / "thumbnail_align/material_masks"
    masks.mkdir(parents=True)
    thumbnail = np.zeros((size_px >> THUMBNAIL_MIP,) * 2, np.uint8)  # 0: all of it is tissue
    for z in range(sections):
        folder = feabas.work / f"stitched_sections/mip0/z{z:03d}"
        folder.mkdir(parents=True)
        (folder / f"z{z:03d}_tr1-tc1.tif").symlink_to((data / f"sections/z{z:03d}.tif").resolve())
        head = _head(folder, feabas.pixel_size_nm, size_px)
        (folder / "metadata.txt").write_text("\n".join([*head, f"z{z:03d}_tr1-tc1.tif\t0\t0"]) + "\n")
        cv2.imwrite(str(masks / f"z{z:03d}.png"), thumbnail)
    for mode in ("downsample", "match", "optimization"):
        feabas.stage("thumbnail_main", mode)
    for mode in ("matching", "optimization"):  # the first makes the meshes, too
        feabas.stage("align_main", mode)
    found = feabas.sample("section", "align/tform", size_px)
    return lambda z, xy: _interpolated(found, f"z{z:03d}", xy)


def _head(folder: Path, pixel_size_nm: float, size_px: int) -> list[str]:
    """How a file of coordinates begins."""
    head = {"ROOT_DIR": str(folder.resolve()), "RESOLUTION": str(pixel_size_nm), "TILE_SIZE": f"{size_px}\t{size_px}"}
    return [f"{{{name}}}\t{value}" for name, value in head.items()]


def _interpolated(found: dict[str, np.ndarray], name: str, xy: np.ndarray) -> np.ndarray | None:
    if name not in found:
        return None
    places = [np.interp(np.asarray(xy)[:, axis], found["axis"], np.arange(len(found["axis"]))) for axis in (1, 0)]
    return np.stack([map_coordinates(found[name][..., k], places, order=1) for k in (0, 1)], axis=-1)


def children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
