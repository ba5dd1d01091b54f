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
    node_grid,
    pair_reports,
    put_matches,
    sheet_matches_path,
    working_path,
)

if TYPE_CHECKING:
    from happyneurons.stages.align.cut_mesh import Cut
    from happyneurons.stages.align.folds import Section


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
        from happyneurons.stages.align.folds import mean_jump

        cv2.setNumThreads(context.threads)
        z, px, grid = int(task.payload["z"]), lengths(context), node_grid(context)
        store = context.output_store("stack")
        bands = store.get_arrays(working_path(z))["bands"]
        others = self._neighbours(context, z)
        hidden, jumps = np.zeros(bands.shape, dtype=bool), []
        for number in range(1, int(bands.max()) + 1):
            band = bands == number
            cut = cut_along(band, grid, px.factor)
            if cut is None:
                continue
            found = mean_jump([self._jump(context, z, other, cut, band) for other in others])
            if found is not None and found.torn(px.factor):
                hidden |= band
                jumps.append(round(float(np.linalg.norm(found.xy_px)), 2))
        cut = cut_along(hidden, grid, px.factor) if jumps else None
        if cut is not None:
            store.put_arrays(cut_path(z), **cut.arrays())
            context.log.info("section %d is cut along %d folds that hide about %s px", z, len(jumps), jumps)
        return TaskResult(data={"z": z, "cut": cut is not None, "jumps_px": jumps})

    @staticmethod
    def _neighbours(context: Context[Any], z: int) -> list[int]:
        """The nearest section on either side that z matches."""
        matched = [r["a"] + r["b"] - z for r in pair_reports(context) if r["ok"] and z in (r["a"], r["b"])]
        below, above = [o for o in matched if o < z], [o for o in matched if o > z]
        return [*([max(below)] if below else []), *([min(above)] if above else [])]

    @staticmethod
    def _jump(context: Context[Any], z: int, other: int, cut: Cut, band: Any) -> Any:
        from happyneurons.stages.align.folds import jump, match_sheets

        px = lengths(context)
        here, there = _section(context, z, cut), _section(context, other, None)
        first, second = (here, there) if z < other else (there, here)
        match = match_sheets(first, second, match_settings(context), px.factor)
        xy, to = (match.a_xy, match.b_xy) if z < other else (match.b_xy, match.a_xy)
        return jump(cut, band, xy, to - xy, px.node_spacing_px)


class MatchSheets(Round):
    """Pairs with a cut section matched again, either side of a cut by itself."""

    name = "sheets"

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        for report in pair_reports(context):
            a, b = report["a"], report["b"]
            if report["ok"] and not (cut_of(context, a) is None and cut_of(context, b) is None):
                yield Task(key=f"{a:06d}_{b:06d}", payload={"a": a, "b": b})

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        import cv2

        from happyneurons.stages.align.folds import match_sheets

        cv2.setNumThreads(context.threads)
        a, b = int(task.payload["a"]), int(task.payload["b"])
        first, second = (_section(context, z, cut_of(context, z)) for z in (a, b))
        match = match_sheets(first, second, match_settings(context), lengths(context).factor)
        put_matches(context, sheet_matches_path(a, b), match)
        return TaskResult(data={"a": a, "b": b, "matches": len(match.a_xy)})


def _section(context: Context[Any], z: int, cut: Cut | None) -> Section:
    from happyneurons.stages.align.folds import Section

    arrays = context.output_store("stack").get_arrays(working_path(z))
    return Section(arrays["image"], arrays["kind"], cut)
