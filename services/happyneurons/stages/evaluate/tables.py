"""Tables of label pairs, added up, and what they say about single objects.

sums/{n}.npz    the tables of some blocks in one
pairs.npz       the whole table: truth object, segment, voxels, one voxel of each pair
objects.csv     a row for each truth object: what splits and mergers cost it
segments.csv    a row for each segment that lies on the truth
skeletons.csv   a row for each skeleton

Memory: `summary` holds the whole table, and while adding up about four times BYTES_PER_PAIR (see
metrics.pairs) for each pair of an object and a segment: 2.2 GB for ten million pairs.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from happyneurons.jobs.stage import Context, Round, Task, TaskResult
from happyneurons.metrics.contingency import Contingency
from happyneurons.metrics.objects import Contributions, contributions, pieces, worst
from happyneurons.metrics.pairs import PairTable
from happyneurons.metrics.run_length import RunLengths
from happyneurons.stages.evaluate.stage import REPORT
from happyneurons.store.documents import Store

_BLOCKS_PER_SUM = 64


@dataclass(frozen=True)
class Tables:
    """What one or more blocks found.

    raw: (object, segment). fill: the same with unsegmented voxels given to segments, or None.
    objects, labels: the truth's own label of each object, sorted by object.
    """

    raw: PairTable
    fill: Contingency | None
    objects: np.ndarray
    labels: np.ndarray

    @classmethod
    def sum(cls, tables: Iterable[Tables]) -> Tables:
        """One table at a time is added, so that only the sum and one more are in memory."""
        total: Tables | None = None
        for table in tables:
            total = table if total is None else total._plus(table)
        return total or cls(PairTable.empty(), None, np.zeros(0, np.uint64), np.zeros(0, np.uint64))

    def _plus(self, other: Tables) -> Tables:
        both = self.fill is not None and other.fill is not None
        objects, first = np.unique(np.concatenate([self.objects, other.objects]), return_index=True)
        return Tables(
            PairTable.sum([self.raw, other.raw]),
            Contingency.sum([f for f in (self.fill, other.fill) if f is not None]) if both else None,
            objects,
            np.concatenate([self.labels, other.labels])[first],
        )

    def write(self, store: Store, path: str) -> None:
        arrays = {f"raw_{name}": a for name, a in self.raw.arrays().items()}
        if self.fill is not None:
            arrays |= {f"fill_{name}": a for name, a in self.fill.arrays().items()}
        store.put_arrays(path, **arrays, objects=self.objects, labels=self.labels)

    @classmethod
    def read(cls, store: Store, path: str) -> Tables:
        arrays = store.get_arrays(path)

        def named(part: str) -> dict[str, np.ndarray]:
            return {k.removeprefix(f"{part}_"): v for k, v in arrays.items() if k.startswith(f"{part}_")}

        fill = Contingency.from_arrays(named("fill")) if "fill_first" in arrays else None
        return cls(PairTable.from_arrays(named("raw")), fill, arrays["objects"], arrays["labels"])

    def labels_of(self, objects: np.ndarray) -> np.ndarray:
        """The truth's labels of objects; 0 for object 0."""
        place = np.minimum(np.searchsorted(self.objects, objects), max(0, len(self.objects) - 1))
        return np.where(objects > 0, self.labels[place], np.uint64(0)) if len(self.objects) else objects


class Sums(Round):
    """Task: the tables of some blocks."""

    name = "sums"

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        keys = [key for key, _ in context.results("labels")]
        for number, start in enumerate(range(0, len(keys), _BLOCKS_PER_SUM)):
            group = keys[start : start + _BLOCKS_PER_SUM]
            yield Task(key=f"{number:06d}-{len(group)}", payload={"blocks": group}, cost=len(group))

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        store = context.output_store(REPORT)
        total = Tables.sum(Tables.read(store, f"labels/{key}.npz") for key in task.payload["blocks"])
        total.write(store, f"sums/{task.key}.npz")
        return TaskResult(data={"pairs": len(total.raw.first)})


def whole_table(context: Context[Any]) -> Tables:
    """The table of all blocks, which is also left as `pairs.npz`."""
    store = context.output_store(REPORT)
    total = Tables.sum(Tables.read(store, f"sums/{key}.npz") for key, _ in context.results(Sums.name))
    pairs = total.raw
    store.put_arrays(
        "pairs.npz", object=pairs.first, label=total.labels_of(pairs.first), segment=pairs.second,
        voxels=pairs.counts, place_zyx=pairs.place_zyx,
    )  # fmt: skip
    return total


def objects_report(context: Context[Any], tables: Tables) -> dict[str, Any]:
    """worst_splits and worst_mergers for the report; writes the tables of all objects and segments."""
    store, count = context.output_store(REPORT), int(context.params.worst)
    objects, segments = contributions(tables.raw)
    store.put("objects.csv", _csv(*_columns("object", "segment", objects, tables.labels_of(objects.ids))))
    store.put("segments.csv", _csv(*_columns("segment", "object", segments, None)))
    splits = []
    for row in worst(objects.voi_split, count).tolist():
        found = pieces(tables.raw.first, tables.raw, objects.ids[row])
        splits.append({
            "object": int(objects.ids[row]),
            "label": int(tables.labels_of(objects.ids[row : row + 1])[0]),
            "voi_split": float(objects.voi_split[row]),
            "segments": int(objects.partners[row]),
            **_shared(objects, row, found),
            "pieces": [{"segment": int(i), **_piece(found, n)} for n, i in enumerate(found.second)],
        })  # fmt: skip
    mergers = []
    for row in worst(segments.voi_merge, count).tolist():
        found = pieces(tables.raw.second, tables.raw, segments.ids[row])
        labels = tables.labels_of(found.first)
        mergers.append({
            "segment": int(segments.ids[row]),
            "voi_merge": float(segments.voi_merge[row]),
            "objects": int(segments.partners[row]),
            **_shared(segments, row, found),
            "pieces": [
                {"object": int(i), "label": int(labels[n]), **_piece(found, n)} for n, i in enumerate(found.first)
            ],
        })  # fmt: skip
    return {"worst_splits": splits, "worst_mergers": mergers}


def _shared(rows: Contributions, row: int, found: PairTable) -> dict[str, Any]:
    return {
        "voxels": int(rows.voxels[row]),
        "largest_fraction": float(rows.largest_fraction[row]),
        # The second largest piece is what was cut off, or what was joined: that is where to look.
        "position_xyz": found.place_zyx[min(1, len(found.first) - 1)][::-1].tolist(),
    }


def _piece(found: PairTable, number: int) -> dict[str, Any]:
    return {"voxels": int(found.counts[number]), "position_xyz": found.place_zyx[number][::-1].tolist()}


def _columns(
    own: str, other: str, rows: Contributions, labels: np.ndarray | None
) -> tuple[list[str], Iterator[Sequence[Any]]]:
    columns: dict[str, np.ndarray] = {own: rows.ids}
    if labels is not None:
        columns["label"] = labels
    columns |= {
        "voxels": rows.voxels, "segmented_voxels": rows.segmented, f"{other}s": rows.partners,
        f"largest_{other}": rows.largest, "largest_fraction": rows.largest_fraction.round(6),
        "voi_split": rows.voi_split.round(9), "voi_merge": rows.voi_merge.round(9),
        **{axis: rows.place_zyx[:, 2 - i] for i, axis in enumerate("xyz")},
    }  # fmt: skip
    if labels is None:
        del columns["segmented_voxels"]  # a segment's voxels are all segmented
    return list(columns), _tuples(columns)


def skeletons_csv(context: Context[Any], rows: Iterable[tuple[np.ndarray, RunLengths]]) -> None:
    """Write `skeletons.csv`, lengths in nm."""
    names = ("path", "longest", "correct", "merged", "split", "omitted")

    def lines() -> Iterator[Sequence[Any]]:
        for skeletons, lengths in rows:
            found: dict[str, np.ndarray] = {"skeleton": skeletons, "runs": lengths.runs.astype(int)}
            yield from _tuples(found | {name: getattr(lengths, name).round(3) for name in names})

    header = ["skeleton", "runs", "path_nm", "longest_run_nm", *(f"{name}_nm" for name in names[2:])]
    context.output_store(REPORT).put("skeletons.csv", _csv(header, lines()))


def _tuples(columns: Mapping[str, np.ndarray]) -> Iterator[Sequence[Any]]:
    return zip(*(column.tolist() for column in columns.values()), strict=True)


def _csv(header: list[str], rows: Iterable[Sequence[Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode()
