"""The rounds of the aligntk backend that differ from our own: pairs, and the places of all sections.

They leave what ours do: points of the pairs in `matches/`, warps in `transforms/`, figures in
`solution.json`; besides, in `aligntk/`, the programs' own maps and scores. So
rendering and all that comes after is the same.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from happyneurons.errors import TaskError, UserError
from happyneurons.jobs.stage import Context, Task, TaskResult
from happyneurons.stages.align import aligntk
from happyneurons.stages.align.params import AlignParams, AlignTKParams
from happyneurons.stages.align.stage import (
    BridgePairs,
    MatchPairs,
    SolveStack,
    input_image,
    lengths,
    matched_stack,
    matches_path,
    whole_stack,
    working_path,
    write_placed,
)

if TYPE_CHECKING:
    from happyneurons.imaging.warp import GridWarp

_LEAST_POINTS = 6
_DIGITS = 3  # of warps: see placing.py


def settings_of(params: AlignParams) -> AlignTKParams:
    return params.aligntk or AlignTKParams()


def _working_size(context: Context[Any]) -> tuple[int, int]:
    """(width, height) of the working pictures."""
    _, height, width = input_image(context).shape_zyx
    factor = lengths(context).factor
    return width // factor, height // factor


def _level(context: Context[Any]) -> int:
    return aligntk.node_level(settings_of(context.params), *_working_size(context))


def _keep(context: Context[Any], folder: Path, files: Sequence[str]) -> None:
    """Put files of a task's folder into `aligntk/` of the output."""
    store = context.output_store("stack")
    for name in files:
        store.put_file(f"aligntk/{name}", folder / name)


def _run(context: Context[Any], program: str, options: Sequence[str], folder: Path, log: str) -> None:
    """Run a program of AlignTK in a folder; what it says is kept in any case.

    That may tell paths and times, and the bytes of a stack depend on nothing but its job: so it lies
    beside the manifest.
    """
    settings = settings_of(context.params)
    try:
        aligntk.Programs.find().run(
            program, options, folder, folder / log, limit_s=60 * settings.time_limit_min, stopping=context.stopping
        )
    finally:
        if (folder / log).exists():
            context.store.put_file(f"jobs/{context.job_key}/aligntk/{log}", folder / log)


class RegisterPairs(MatchPairs):
    """Each pair by `find_rst` (rotation, scale, shift), then `register` (elastic), in the rank's scratch folder."""

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        import numpy as np

        from happyneurons.imaging.fits import fit_affine, scale_and_rotation
        from happyneurons.stages.align.prepare import section_px

        a, b = int(task.payload["a"]), int(task.payload["b"])
        name, (width, height) = aligntk.pair_name(a, b), _working_size(context)
        px, params = lengths(context), context.params
        with tempfile.TemporaryDirectory(dir=context.scratch) as scratch:
            folder = Path(scratch)
            self._write(context, folder, a, b)
            shift = (px.max_shift_px / width, px.max_shift_px / height)
            _run(
                context, "find_rst", aligntk.find_rst_options(params.max_rotation_deg, shift), folder,
                f"{name}.find_rst.log",
            )  # fmt: skip
            quality = aligntk.read_score(folder / f"cmaps/{name}.score", "find_rst")[0]
            aligntk.read_checked_map(folder / f"cmaps/{name}.map", "find_rst")
            options = aligntk.register_options(settings_of(params), _level(context))
            _run(context, "register", options, folder, f"{name}.register.log")
            found = aligntk.read_checked_map(folder / f"maps/{name}.map", "register")
            score, correlation = aligntk.read_score(folder / f"maps/{name}.score", "register")[:2]
            kept = [f"{sort}/{name}.{kind}" for sort in ("cmaps", "maps") for kind in ("map", "score")]
            _keep(context, folder, kept)
        # Nodes beyond the section's border hold springs of `align`, but no tissue.
        source, target = found.sources_px(), found.targets_px()
        inside = ((source >= -0.5) & (source <= np.array([width, height]) - 0.5)).all(axis=-1)
        used = inside & found.valid
        a_xy, b_xy = source[used], target[used]
        scale, rotation = scale_and_rotation(fit_affine(a_xy, b_xy)[:, :2] if used.any() else np.eye(2))
        enough = score >= settings_of(params).min_score
        ok = enough and len(a_xy) >= _LEAST_POINTS and 0.9 < scale < 1.1
        context.output_store("stack").put_arrays(
            matches_path(a, b),
            a_xy=np.round(section_px(a_xy, px.factor), 4), b_xy=np.round(section_px(b_xy, px.factor), 4),
            correlation=np.round(np.clip(found.confidence[used], 0, 1), 4),
        )  # fmt: skip
        if not ok:
            context.log.warning(
                "sections %d and %d do not match: AlignTK's score %.2f, scale %.2f, %d nodes",
                a, b, score, scale, len(a_xy),
            )  # fmt: skip
        data = {
            "a": a, "b": b, "ok": bool(ok), "score": round(score, 4), "quality": round(quality, 4),
            "found": round(len(a_xy) / max(1, int(inside.sum())), 4), "matches": len(a_xy),
            "correlation": round(correlation, 4), "rotation_deg": round(rotation, 3), "scale": round(scale, 5),
        }  # fmt: skip
        return TaskResult(data=data)

    @staticmethod
    def _write(context: Context[Any], folder: Path, a: int, b: int) -> None:
        """What find_rst and register read."""
        from happyneurons.stages.align.prepare import OUTSIDE

        for z in (a, b):
            arrays = context.output_store("stack").get_arrays(working_path(z))
            # With artifacts taken out too, find_rst sees little: it fades pictures towards the border of the mask.
            aligntk.write_picture(folder, z, arrays["image"], arrays["kind"] != OUTSIDE)
        names = [aligntk.section_name(a), aligntk.section_name(b)]
        aligntk.write_list(folder / "pairs.lst", [(*names, aligntk.pair_name(a, b))])
        for name in ("cmaps", "maps"):
            (folder / name).mkdir()


class RegisterBridges(RegisterPairs, BridgePairs):
    """The same for the pairs that lead past neighbours that do not match."""


class RelaxStack(SolveStack):
    """One task: the places of all sections by `align`, a relaxation of springs over the maps of the pairs."""

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        yield whole_stack(context)  # AlignTK takes a stack as a whole, however long it is

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        from happyneurons.stages.align.placing import Placed, judge

        stack = matched_stack(context)
        warps = self._relax(context, stack.kept, [(p["a"], p["b"]) for p in stack.usable])
        return write_placed(context, Placed(warps, *judge(stack, stack.points(stack.kept), warps)))

    @staticmethod
    def _relax(context: Context[Any], kept: Sequence[int], pairs: Sequence[tuple[int, int]]) -> dict[int, GridWarp]:
        """Warps of the kept sections, section px → aligned px, both from the corner of the stack."""
        from happyneurons.imaging.warp import GridWarp

        _, height, width = input_image(context).shape_zyx
        if not pairs:  # a single section
            return {z: GridWarp.identity(width, height) for z in kept}
        store, level = context.output_store("stack"), _level(context)
        with tempfile.TemporaryDirectory(dir=context.scratch) as scratch:
            folder = Path(scratch)
            for name in ("maps", "amaps"):
                (folder / name).mkdir()
            for a, b in pairs:
                name = f"maps/{aligntk.pair_name(a, b)}.map"
                (folder / name).write_bytes(store.get(f"aligntk/{name}"))
            size = _working_size(context)
            # With its size beside each name, `align` opens no picture.
            aligntk.write_list(folder / "images.lst", [(aligntk.section_name(z), *size) for z in kept])
            aligntk.write_list(
                folder / "pairs.lst",
                [(aligntk.section_name(a), aligntk.section_name(b), aligntk.pair_name(a, b)) for a, b in pairs],
            )
            aligntk.write_schedule(folder / "schedule.lst", settings_of(context.params), level)
            aligntk.write_blank_font(folder / "font.pgm")
            fixed = fixed_sections(kept, pairs, context.params.anchor)
            _run(context, "align", aligntk.align_options(fixed), folder, "align.log")
            lacking = [z for z in kept if not (folder / f"amaps/{aligntk.section_name(z)}.map").exists()]
            if lacking:
                log = f"jobs/{context.job_key}/aligntk/align.log"
                raise TaskError(
                    f"AlignTK's align wrote no map of {len(lacking)} sections ({lacking[0]}, …): it stops where the "
                    f"stack would fold; raise params.aligntk.distortion, or see {log}"
                )
            factor = lengths(context).factor
            warps = {}
            for z in kept:
                name = f"amaps/{aligntk.section_name(z)}.map"
                found = aligntk.read_checked_map(folder / name, "align")
                _keep(context, folder, [name])
                try:
                    warps[z] = _scaled(found.warp(), factor)
                except UserError as error:
                    raise TaskError(f"AlignTK's align: {error}") from None
        return warps


def fixed_sections(kept: Sequence[int], pairs: Sequence[tuple[int, int]], anchor: int | None) -> list[int]:
    """A section to keep in place for each group that pairs join: the anchor in its own, the middle one elsewhere.

    Without one, a group would be free to turn and to move.
    """
    group = {z: z for z in kept}

    def first(z: int) -> int:
        while group[z] != z:
            z = group[z]
        return z

    for a, b in pairs:
        low, high = sorted((first(a), first(b)))
        group[high] = low
    members: dict[int, list[int]] = {}
    for z in kept:
        members.setdefault(first(z), []).append(z)
    return [anchor if anchor is not None and anchor in group else group[len(group) // 2] for group in members.values()]


def _scaled(warp: GridWarp, factor: int) -> GridWarp:
    """A warp between working px as one between section px."""
    import numpy as np

    from happyneurons.stages.align.prepare import section_px

    nodes = np.round(section_px(warp.nodes, factor), _DIGITS)
    return type(warp)(section_px(warp.origin_xy, factor), warp.spacing_px * factor, nodes)
