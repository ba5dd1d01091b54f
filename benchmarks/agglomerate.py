"""Agglomerate google/ffn's own segmentation of a labelled crop of FIB-25; scores before and after.

usage: PYTHONPATH=services python benchmarks/agglomerate.py [--shared ../shared] [--store FOLDER] [--size 128]
           [--params JSON]

The segmentation is that of google/ffn on em[0:128]^3 with the published network. The thresholds of the stage
were set on pairs of another segmentation at x >= 125, which this crop hardly touches. Scores count voxels that
are segmented; fill_… those of all objects, unsegmented voxels given to the nearest segment. A merge is false
if the two segments lie for the most part in different objects. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

from happyneurons.metrics.segmentation import connected_objects, fill_nearest, scores, truth_table
from happyneurons.store.documents import Store
from happyneurons.store.volumes import open_volume
from happyneurons.worker.local import run_stage


def figures(segmentation: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    found = {}
    for prefix, labels in (("", segmentation), ("fill_", fill_nearest(segmentation))):
        result = scores(truth_table(labels, truth))
        for name in ("voi_split", "voi_merge", "adapted_rand_error"):
            found[prefix + name] = round(getattr(result, name), 4)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--store", type=Path)
    parser.add_argument("--size", type=int, default=128, help="edge of the crop, voxels")
    parser.add_argument("--params", type=json.loads, default={}, help="parameters of the stage")
    args = parser.parse_args()
    data, crop = args.shared / "data" / "fib25", (slice(0, args.size),) * 3
    folder = args.store or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(data / "em.h5") as em, h5py.File(data / "labels_z000-128.h5") as labels:
        image, truth = em["em"][crop], connected_objects(labels["labels"][crop])
    with np.load(data / "google_ffn_crop_0-128.npz") as arrays:
        segmentation = np.maximum(arrays["segmentation"][crop], 0).astype(np.uint32)
    file = (folder / "crop.h5").resolve()
    if not file.exists():  # a changed file would be another job
        with h5py.File(file, "w") as out:
            out["em"], out["segmentation"] = image, segmentation
    started = time.process_time()
    manifest = run_stage(
        Store(str(folder / "store")),
        "agglomerate",
        inputs={
            "image": f"h5://{file}?em",
            "segmentation": f"h5://{file}?segmentation",
            "model": f"ckpt://{(args.shared / 'models/fib25/model.ckpt-27465036').resolve()}",
        },
        params=args.params,
    )
    cpu_s = time.process_time() - started
    volume = open_volume(manifest.outputs["segmentation"].data_uri)
    agglomerated = volume.read(volume.start_zyx, volume.stop_zyx)
    table = Store(manifest.outputs["decisions"].data_uri).get_json("table.json")
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
    merged = [(r["segment_a"], r["segment_b"]) for r in rows if r["decision"] == "merge"]
    majority = {s: _majority(truth[segmentation == s]) for pair in merged for s in pair}
    report = {
        "size": args.size,
        "pairs": len(rows),
        "merged": len(merged),
        "false_merges": sum(majority[a] != majority[b] for a, b in merged),
        "fov_steps": int(manifest.metrics["fov_steps"]),
        "cpu_s": round(cpu_s, 1),
        "before": figures(segmentation, truth),
        "after": figures(agglomerated, truth),
    }
    print(json.dumps(report))


def _majority(truth: np.ndarray) -> int:
    """The object that most of a segment's labelled voxels lie in."""
    objects, counts = np.unique(truth[truth > 0], return_counts=True)
    return int(objects[counts.argmax()]) if len(objects) else 0


if __name__ == "__main__":
    main()
