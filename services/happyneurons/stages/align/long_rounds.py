"""The rounds that place a long stack, in windows of sections (see `windows`); other stacks give them no tasks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from happyneurons.jobs.stage import Context, Round, Task, TaskResult
from happyneurons.stages.align.stage import good_sections, is_long, matched_stack, write_placed

if TYPE_CHECKING:
    from happyneurons.stages.align.solve import AffineMaps


class SolveAffine(Round):
    """One task: the affine maps of all sections, from a few points of each pair."""

    name = "affine"
    path = "solve/affine.npz"

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        if is_long(context):
            yield Task(key="stack", payload={}, cost=len(good_sections(context)))

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        from happyneurons.stages.align.windows import affine_maps

        found = affine_maps(matched_stack(context))
        context.output_store("stack").put_arrays(self.path, matrices=found.matrices, drift=found.drift)
        return TaskResult(data={"jitter_px": found.jitter_px})

    @classmethod
    def result(cls, context: Context[Any]) -> AffineMaps:
        """What the task found."""
        from happyneurons.stages.align.solve import AffineMaps

        arrays = context.output_store("stack").get_arrays(cls.path)
        jitter_px = next(data["jitter_px"] for _, data in context.results(cls.name))
        return AffineMaps(arrays["matrices"], arrays["drift"], jitter_px)


class SolveWindows(Round):
    """Windows: elastic shifts beyond the affine maps."""

    name = "windows"

    @staticmethod
    def path(start: int) -> str:
        return f"solve/{start:06d}.npz"

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        from happyneurons.stages.align.windows import windows_of

        if is_long(context):
            for w in windows_of(matched_stack(context)):
                yield Task(key=f"{w.start:06d}", payload={"start": w.start, "stop": w.stop}, cost=w.stop - w.start)

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        from happyneurons.stages.align.windows import Window, elastic_shifts

        store, window = context.output_store("stack"), Window(task.payload["start"], task.payload["stop"])
        shifts, distortion_px = elastic_shifts(matched_stack(context), window, SolveAffine.result(context))
        store.put_arrays(self.path(window.start), **{f"{k:06d}": s for k, s in enumerate(shifts)})
        return TaskResult(data={"distortion_px": float(distortion_px)})


class PlaceWindows(Round):
    """One task: what the windows say, blended."""

    name = "place"

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        if is_long(context):
            yield Task(key="stack", payload={}, cost=len(good_sections(context)))

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        import numpy as np

        from happyneurons.stages.align.windows import place_windows, windows_of

        store, stack = context.output_store("stack"), matched_stack(context)
        distortion_px = float(np.median([data["distortion_px"] for _, data in context.results(SolveWindows.name)]))
        solved = [(w, list(store.get_arrays(SolveWindows.path(w.start)).values())) for w in windows_of(stack)]
        return write_placed(context, place_windows(stack, SolveAffine.result(context), solved, distortion_px))
