"""The rounds that cut torn sections (see `folds`); others give them no tasks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from happyneurons.jobs.stage import Context, Round, Task, TaskResult
from happyneurons.stages.align.stage import (
    FOLD_ROUND,
    PrepareSections,
    cut_of,
    cut_path,
    good_sections,
    lengths,
    match_settings,
    matches_path,
    node_grid,
    pair_reports,
    put_matches,
    sheet_matches_path,
    working_path,
)

if TYPE_CHECKING:
    from happyneurons.stages.align.cut_mesh import Cut
    from happyneurons.stages.align.folds import Matches


class FindFolds(Round):
    """Sections with long thin bands of odd grey values: across which of them tissue jumps."""

    name = FOLD_ROUND

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        banded = {data["z"] for _, data in context.results(PrepareSections.name) if data.get("bands")}
        for z in good_sections(context):
            if z in banded:
                yield Task(key=f"{z:06d}", payload={"z": z})

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        import cv2
        import numpy as np

        from happyneurons.stages.align.cut_mesh import cut_along
        from happyneurons.stages.align.folds import jump, mean_jump

        cv2.setNumThreads(context.threads)
        z, px, grid = int(task.payload["z"]), lengths(context), node_grid(context)
        store = context.output_store("stack")
        bands = store.get_arrays(working_path(z))["bands"]
        cut = cut_along(bands > 0, grid, px.factor)
        torn: dict[int, float] = {}
        found: dict[int, Matches] = {}
        if cut is not None:
            found = {other: self._match(context, z, other, cut) for other in self._neighbours(context, z)}
            moves = [(m.a_xy, m.b_xy) if z < other else (m.b_xy, m.a_xy) for other, m in found.items()]
            for number in range(1, int(bands.max()) + 1):
                jumps = [jump(cut, bands == number, xy, to - xy, px.node_spacing_px) for xy, to in moves]
                across = mean_jump(jumps)
                if across is not None and across.torn(px.factor):
                    torn[number] = round(float(np.linalg.norm(across.xy_px)), 2)
            if len(torn) < bands.max():
                cut, found = cut_along(np.isin(bands, list(torn)), grid, px.factor), {}
        if cut is not None:
            store.put_arrays(cut_path(z), **cut.arrays())
            for other, match in found.items():
                put_matches(context, sheet_matches_path(*sorted((z, other))), match)
            context.log.info("section %d is cut along folds that hide about %s px", z, list(torn.values()))
        return TaskResult(
            data={"z": z, "cut": cut is not None, "jumps_px": list(torn.values()), "matched": sorted(found)}
        )

    @staticmethod
    def _neighbours(context: Context[Any], z: int) -> list[int]:
        """The nearest section on either side that z matches."""
        matched = [r["a"] + r["b"] - z for r in pair_reports(context) if r["ok"] and z in (r["a"], r["b"])]
        below, above = [o for o in matched if o < z], [o for o in matched if o > z]
        return [*([max(below)] if below else []), *([min(above)] if above else [])]

    @staticmethod
    def _match(context: Context[Any], z: int, other: int, cut: Cut) -> Matches:
        """Of section z, which is cut, and another one as if that were not."""
        return _matched(context, z, other, cut, None) if z < other else _matched(context, other, z, None, cut)


class MatchSheets(Round):
    """Pairs with a cut section, but for those of `FindFolds`, matched again: either side of a cut by itself."""

    name = "sheets"

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        folds = {data["z"]: data for _, data in context.results(FOLD_ROUND) if data["cut"]}
        for report in pair_reports(context):
            a, b = report["a"], report["b"]
            cut = [z for z in (a, b) if z in folds]
            done = len(cut) == 1 and a + b - cut[0] in folds[cut[0]]["matched"]
            if report["ok"] and cut and not done:
                yield Task(key=f"{a:06d}_{b:06d}", payload={"a": a, "b": b})

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        import cv2

        cv2.setNumThreads(context.threads)
        a, b = int(task.payload["a"]), int(task.payload["b"])
        match = _matched(context, a, b, cut_of(context, a), cut_of(context, b))
        put_matches(context, sheet_matches_path(a, b), match)
        return TaskResult(data={"a": a, "b": b, "matches": len(match.a_xy)})


def _matched(context: Context[Any], a: int, b: int, cut_a: Cut | None, cut_b: Cut | None) -> Matches:
    from happyneurons.stages.align.folds import Matches, Section, match_sheets

    store = context.output_store("stack")
    first, second = (
        Section(arrays["image"], arrays["kind"], cut)
        for arrays, cut in ((store.get_arrays(working_path(z)), cut) for z, cut in ((a, cut_a), (b, cut_b)))
    )
    whole = Matches(**store.get_arrays(matches_path(a, b)))
    return match_sheets(first, second, whole, match_settings(context), lengths(context).factor)
