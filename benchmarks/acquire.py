"""What `hpn acquire watch` costs, with tiles as large as the paper's.

usage: python benchmarks/acquire.py [--folder FOLDER] [--sections 4] [--idle 10000]

A section is two TIFF tiles of 10833 x 14000 px, 8 bit (303 MB); the paper's microscope takes 20 s for one
or more. Measured in one process, one after the other, with the files in the page cache: verifying them
(read to the end, sha256), and copying them into a store on the same disk (written, read back, compared);
each beside `sha256sum` and `cp` of the same files. Then one look at a folder of --idle finished sections.
Printed as JSON: seconds per section, MB/s, ratios of time (below 1: faster than the plain tool), peak
memory of the process in MB.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tifffile

from happyneurons.acquisition import metadata
from happyneurons.acquisition.state import WatchState
from happyneurons.acquisition.tiles import verify_tile
from happyneurons.acquisition.transfer import Cargo, CopyToStore, InPlace
from happyneurons.acquisition.watch import LOOK_AGAIN, Options, Watcher
from happyneurons.acquisition.watch_layouts import OurLayout, file_stamp
from happyneurons.acquisition.watch_report import Reporter
from happyneurons.v1 import acquisition_pb2

WIDTH, HEIGHT = 10833, 14000


def photograph(folder: Path, sections: int) -> list[list[Path]]:
    """Tiles of random pixels: they cost what any uncompressed ones cost."""
    rng = np.random.default_rng(0)
    result = []
    for z in range(sections):
        paths = [metadata.section_folder(folder, z) / metadata.tile_file(0, col) for col in range(2)]
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = (rng.integers(0, 256, (1000, WIDTH), np.uint8) for _ in range(HEIGHT // 1000))
            tifffile.imwrite(
                path, rows, shape=(HEIGHT, WIDTH), dtype=np.uint8, rowsperstrip=1000, metadata=None
            )  # fmt: skip
        result.append(paths)
    return result


def cargo_of(z: int, paths: list[Path]) -> Cargo:
    section = acquisition_pb2.Section(z=z)
    size = 0
    for path in paths:
        found = verify_tile(path, (WIDTH, HEIGHT), "uint8")
        section.tiles.add(sha256=found.sha256)
        size += found.size_bytes
    return Cargo(section, tuple((p, file_stamp(p)) for p in paths), "", 0.0, size)


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def idle_look_s(folder: Path, sections: int) -> float:
    """One look at a folder whose sections are all reported."""
    document = metadata.AcquisitionDocument(
        voxel_size_nm_xyz=(4, 4, 30), cols=2, rows=1, tile_width_px=WIDTH, tile_height_px=HEIGHT, overlap_px=1000,
        z_range=(0, sections), pace_s=20,
    )  # fmt: skip
    metadata.write_document(folder / metadata.ACQUISITION_FILE, document)
    for z in range(sections):
        path = metadata.section_folder(folder, z) / metadata.SECTION_FILE
        path.parent.mkdir(parents=True)
        path.write_text("{}")
    state = WatchState.open(folder / ".hpn-watch", "idle")
    for z in range(sections):
        path = metadata.section_folder(folder, z) / metadata.SECTION_FILE
        state.reported[z] = (file_stamp(path), "")
    reporter = Reporter("127.0.0.1:1", "idle", state, print)  # nothing is reported, so nobody is asked
    watcher = Watcher(OurLayout(folder), InPlace(folder), reporter, state, Options(), print)
    looks = 10
    watcher.step()
    took = seconds(lambda: [watcher.step() for _ in range(looks)])
    reporter.close()
    return took / looks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to work [default: a temporary folder]")
    parser.add_argument("--sections", type=int, default=4)
    parser.add_argument("--idle", type=int, default=10_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        sections = photograph(folder / "scope", arguments.sections)
        files = [path for paths in sections for path in paths]
        megabytes = sum(path.stat().st_size for path in files) / 1e6
        seconds(lambda: subprocess.run(["cat", *files], check=True, stdout=subprocess.DEVNULL))  # into the page cache
        # Taken before anything else, so that writing the tiles does not count.
        before_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        cargos: list[Cargo] = []
        verify_s = seconds(lambda: cargos.extend(cargo_of(z, paths) for z, paths in enumerate(sections)))
        sha256sum_s = seconds(lambda: subprocess.run(["sha256sum", *files], check=True, stdout=subprocess.DEVNULL))
        mover = CopyToStore((folder / "store").as_uri(), print)

        def copy() -> None:
            for cargo in cargos:
                mover.begin(cargo)
                (arrival,) = mover.poll()
                assert not arrival.problem

        copy_s = seconds(copy)
        shutil.rmtree(folder / "store")
        (folder / "plain").mkdir()
        cp_s = seconds(
            lambda: [subprocess.run(["cp", p, folder / "plain" / str(i)], check=True) for i, p in enumerate(files)]
        )
        after_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        look_s = idle_look_s(folder / "idle", arguments.idle)
        count = arguments.sections
        print(json.dumps({
            "sections": count, "mb_per_section": round(megabytes / count, 1),
            "verify_s_per_section": round(verify_s / count, 3), "verify_mb_per_s": round(megabytes / verify_s),
            "copy_s_per_section": round(copy_s / count, 3), "copy_mb_per_s": round(megabytes / copy_s),
            "verify_to_sha256sum": round(verify_s / sha256sum_s, 2), "copy_to_cp": round(copy_s / cp_s, 2),
            "copy_to_cp_and_sha256sum": round(copy_s / (cp_s + sha256sum_s), 2),
            "peak_mb_before": round(before_mb), "peak_mb": round(after_mb),
            "idle_sections": arguments.idle, "idle_look_ms": round(look_s * 1e3, 1), "looked_at_again": LOOK_AGAIN,
        }, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
