"""Converting volumes, beside the peers that do the same.

usage: PYTHONPATH=services python benchmarks/convert.py [--data ../shared/data] [--rounds 3] [--tile 1]
       [--labels uint32] [--peer-threads 1] [--only PART] [--webknossos-python VENV/bin/python]

Image and labels of FIB-25 (repeated `--tile` times along z), from and to formats that a peer converts, too: igneous
transfers precomputed volumes, tensorstore copies arrays of Zarr 3, h5py writes compressed HDF5, webknossos copies
datasets from WKW to Zarr 3 and back. Ours is the whole job with its journal, in this process; theirs is the call, in
this process or in one of the environment given, without its start. Ours has two threads that read and write;
tensorstore has `--peer-threads` for each, the others say nothing about theirs. Where the source has shards of half the
edge, no file can be taken over ("encoded again"). Sources and targets lie on the same file system; a round is ours,
then theirs. Prints a line of JSON a case: MB of voxels a second, and how many times faster ours was (median, least,
most), by the clock and by seconds of CPU (these only where both run in this process; on machines that do other work,
too, they say more). Every target is read back and compared.
"""

from __future__ import annotations

import argparse
import functools
import json
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from happyneurons.formats.base import ReadOptions, VolumeInfo, WriteOptions
from happyneurons.formats.blocks import boxes
from happyneurons.formats.registry import make_writer, open_reader
from happyneurons.store.documents import Store
from happyneurons.store.triples import triple
from happyneurons.worker.local import run_stage

CHUNK_PX, SHARD_PX = 64, 256
WEBKNOSSOS = """
import json, sys, time
from cluster_tools import get_executor
from webknossos import Dataset
if __name__ == "__main__":
    source, target, data_format, edge, chunk = sys.argv[1:]
    dataset = Dataset.open(source)
    begin = time.perf_counter()
    with get_executor("sequential") as executor:
        dataset.copy_dataset(
            target, data_format=data_format, shard_shape=(int(edge),) * 3, chunk_shape=(int(chunk),) * 3,
            compress=True, executor=executor,
        )
    print(json.dumps(time.perf_counter() - begin))
"""


def write(path: Path, name: str, array: np.ndarray, shard_px: int) -> str:
    """A source. Returns its URI."""
    info = VolumeInfo((0, 0, 0), triple(array.shape), (10.0, 10.0, 10.0), array.dtype, array.dtype.itemsize >= 4)
    writer = make_writer(str(path), name, [info], WriteOptions(CHUNK_PX, shard_px))
    writer.prepare()
    for start, stop in boxes(info.start_zyx, info.stop_zyx, writer.grid_zyx(0), writer.unit_zyx(0)):
        writer.write(0, start, array[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))])
    writer.close(int(array.max()))
    return writer.uri()


def ours(source: str, target: Path, name: str, folder: Path) -> float:
    begin = time.perf_counter()
    params = {"source": source, "target": str(target), "format": name, "chunk_px": CHUNK_PX, "shard_px": SHARD_PX}
    params |= {"hdf5_compression": "gzip"} if name == "hdf5" else {}
    run_stage(Store((folder / f"{target.name}.job").as_uri()), "convert", params=params)
    return time.perf_counter() - begin


def igneous(source: str, target: Path) -> float:
    from igneous.task_creation import create_transfer_tasks
    from taskqueue import LocalTaskQueue

    begin = time.perf_counter()
    queue = LocalTaskQueue(parallel=1, progress=False)
    queue.insert(
        create_transfer_tasks(
            source, target.as_uri(), chunk_size=(CHUNK_PX,) * 3, skip_downsamples=True, compress=False,
            encoding="compressed_segmentation" if "labels" in target.name else "raw",
        )
    )  # fmt: skip
    queue.execute()
    return time.perf_counter() - begin


def tensorstore(source: str, target: Path, threads: int) -> float:
    import tensorstore as ts

    from happyneurons.formats.location import Location

    begin = time.perf_counter()
    context = ts.Context({"data_copy_concurrency": {"limit": threads}, "file_io_sync": False})
    folder = Location.parse(source).path
    copy = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{folder}/0/"}}
    array: Any = ts.open(copy, context=context).result()
    new = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{target}/0/"}}
    schema = {"rank": 3, "dtype": array.dtype.name, "domain": array.domain.to_json(), "codec": array.codec.to_json()}
    schema["chunk_layout"] = {"write_chunk": {"shape": [SHARD_PX] * 3}, "read_chunk": {"shape": [CHUNK_PX] * 3}}
    made = ts.open({**new, "schema": schema}, context=context, create=True).result()
    made.write(array).result()
    return time.perf_counter() - begin


def plain_h5py(source: str, target: Path) -> float:
    """What one writes with h5py: sections as deep as a chunk, compressed as ours are."""
    begin = time.perf_counter()
    reader = open_reader(source, ReadOptions())
    (z0, y0, x0), (z1, y1, x1) = reader.start_zyx, reader.stop_zyx
    with h5py.File(target, "w") as file:
        data = file.create_dataset(
            "volume", (z1 - z0, y1 - y0, x1 - x0), reader.dtype, chunks=(CHUNK_PX,) * 3, compression="gzip",
            shuffle=reader.dtype.itemsize > 1,
        )  # fmt: skip
        for z in range(z0, z1, CHUNK_PX):
            data[z - z0 : z - z0 + CHUNK_PX] = reader.read((z, y0, x0), (min(z + CHUNK_PX, z1), y1, x1))
    return time.perf_counter() - begin


def webknossos(python: str, source: str, target: Path, data_format: str) -> float:
    script = target.parent / "webknossos_copy.py"
    script.write_text(WEBKNOSSOS)
    folder = source.removeprefix("file://").partition("?")[0]
    command = [python, str(script), folder, str(target), data_format, str(SHARD_PX), "32"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout.strip().splitlines()[-1]))


def same(uri: str, array: np.ndarray) -> bool:
    reader = open_reader(uri, ReadOptions())
    return bool(np.array_equal(reader.read(reader.start_zyx, reader.stop_zyx), array))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tile", type=int, default=1, help="how often the volumes are repeated along z")
    parser.add_argument("--webknossos-python", help="Python of an environment with webknossos")
    parser.add_argument("--labels", default="uint32", choices=["uint32", "uint64"], help="type of the labels")
    parser.add_argument("--peer-threads", type=int, default=1, help="threads that tensorstore copies with")
    parser.add_argument("--only", help="part of a case's name")
    options = parser.parse_args()
    with h5py.File(options.data / "fib25" / "em.h5") as file:
        image = np.tile(file["em"][()], (options.tile, 1, 1))
    with h5py.File(options.data / "fib25" / "labels_z000-128.h5") as file:
        labels = np.tile(file["labels"][()], (options.tile, 1, 1)).astype(options.labels)
    for kind, array in (("image", image), ("labels", labels)):
        copy = functools.partial(tensorstore, threads=options.peer_threads)
        cases: list[tuple[str, str, str, Callable[[str, Path], float], int]] = [
            ("precomputed", "precomputed", "igneous", igneous, SHARD_PX),
            ("ome-zarr", "ome-zarr", "tensorstore", copy, SHARD_PX),
            ("ome-zarr", "ome-zarr", "tensorstore", copy, SHARD_PX // 2),
            ("ome-zarr", "hdf5", "h5py", plain_h5py, SHARD_PX),
        ]
        if options.webknossos_python:
            to = functools.partial(webknossos, options.webknossos_python)
            cases += [
                (
                    "webknossos-wkw",
                    "webknossos-zarr3",
                    "webknossos",
                    functools.partial(to, data_format="zarr3"),
                    SHARD_PX,
                ),
                (
                    "webknossos-zarr3",
                    "webknossos-wkw",
                    "webknossos",
                    functools.partial(to, data_format="wkw"),
                    SHARD_PX,
                ),
            ]
        for source, target, peer, theirs, shard_px in cases:
            name = f"{source} → {target}, {kind} {array.dtype}" + ", encoded again" * (shard_px != SHARD_PX)
            name += ", gzip" * (target == "hdf5")
            if not options.only or options.only in name:
                found = measure(name, kind, array, (source, shard_px), target, peer, theirs, options.rounds)
                print(json.dumps(found), flush=True)


def measure(
    name: str,
    kind: str,
    array: np.ndarray,
    source: tuple[str, int],
    target: str,
    peer: str,
    theirs: Callable[[str, Path], float],
    rounds: int,
) -> dict[str, Any]:
    """A case: ours and theirs in turn. source: its format, and the edge of its shards."""
    seconds: list[tuple[float, float]] = []
    cpu: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory(prefix="hpn-convert-") as temporary:
        folder = Path(temporary)
        uri = write(folder / f"source_{kind}", source[0], array, source[1])
        for number in range(rounds + 1):
            end_of_name = ".h5" if target == "hdf5" else ""
            mine, other = folder / f"ours_{kind}{end_of_name}", folder / f"theirs_{kind}{end_of_name}"
            begin = time.process_time()
            first, between = ours(uri, mine, target, folder), time.process_time()
            second, end = theirs(uri, other), time.process_time()
            if number:  # the first time is for imports and the file cache
                seconds.append((first, second))
                cpu.append((between - begin, end - between))
            else:
                for path in (mine, other):
                    assert same(str(path), array) if target != "ome-zarr" else same(f"{path}?0", array), path
            for path in (mine, other, folder / f"{mine.name}.job"):
                path.unlink() if path.is_file() else shutil.rmtree(path)
    speeds = [round(array.nbytes / 1e6 / statistics.median(column), 1) for column in zip(*seconds, strict=True)]
    return {
        "case": name, "peer": peer, "mb": round(array.nbytes / 1e6, 1),
        "ours_mb_s": speeds[0], "peer_mb_s": speeds[1], "times_faster": ratios(seconds),
        **({} if peer == "webknossos" else {"times_less_cpu": ratios(cpu)}),
    }  # fmt: skip


def ratios(pairs: list[tuple[float, float]]) -> list[float]:
    """Theirs by ours: median, least, most."""
    found = [theirs / ours for ours, theirs in pairs]
    return [round(r, 2) for r in (statistics.median(found), min(found), max(found))]


if __name__ == "__main__":
    main()
