"""align: sections of a stack → sections that lie on one another, without straightening what is oblique."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from happyneurons.errors import NotFoundError, UserError
from happyneurons.jobs.stage import (
    Context,
    InputSpec,
    Output,
    OutputSpec,
    Round,
    Stage,
    StageResult,
    Task,
    TaskResult,
)
from happyneurons.stages.align.params import AlignParams, Lengths
from happyneurons.store.artifacts import Bounds

if TYPE_CHECKING:
    from happyneurons.stages.align.coarse import Level, MatchSettings
    from happyneurons.stages.align.cut_mesh import Cut
    from happyneurons.stages.align.folds import Matches
    from happyneurons.stages.align.matching import PairMatch
    from happyneurons.stages.align.placing import MatchedStack, Placed
    from happyneurons.stages.align.system import NodeGrid
    from happyneurons.store.volumes import PrecomputedVolume

CHUNK_PX = 1024
NO_PICTURE = ("failed", "missing", "blank")
# A section with less than this part of the stack's median contrast is blank.
_LEAST_CONTRAST = 0.2


def working_path(z: int) -> str:
    return f"working/{z:06d}.npz"


def matches_path(a: int, b: int) -> str:
    return f"matches/{a:06d}_{b:06d}.npz"


def sheet_matches_path(a: int, b: int) -> str:
    """Instead of `matches_path` where one of the sections is cut."""
    return f"matches/{a:06d}_{b:06d}_sheets.npz"


def cut_path(z: int) -> str:
    return f"cuts/{z:06d}.npz"


def input_volume(context: Context[Any], name: str) -> PrecomputedVolume | None:
    """Image or mask of the input; None if it has no mask."""
    from happyneurons.store.volumes import PrecomputedVolume

    stack = context.input("stack")
    if name == "mask" and not stack.properties.get("mask"):
        return None
    volume: PrecomputedVolume = context.once(name, lambda: PrecomputedVolume(f"{stack.data_uri}/{name}"))
    return volume


def input_image(context: Context[Any]) -> PrecomputedVolume:
    volume = input_volume(context, "image")
    assert volume is not None
    return volume


def lengths(context: Context[Any]) -> Lengths:
    image = input_image(context)
    _, height, width = image.shape_zyx
    return Lengths.of(context.params, width, height, image.voxel_size_nm_xyz)


def match_settings(context: Context[Any]) -> MatchSettings:
    from happyneurons.stages.align.coarse import MatchSettings

    px = lengths(context)
    return MatchSettings(
        px.window_px, px.spacing_px, px.detail_px, px.max_shift_px, context.params.max_rotation_deg
    )  # fmt: skip


def node_grid(context: Context[Any]) -> NodeGrid:
    """The grid of a section's warp, from the section's corner."""
    from happyneurons.stages.align.system import NodeGrid

    _, height, width = input_image(context).shape_zyx
    return NodeGrid(width, height, lengths(context).node_spacing_px)


def put_matches(context: Context[Any], path: str, match: PairMatch | Matches) -> None:
    """Keep matches, in px of the sections from their corner."""
    import numpy as np

    context.output_store("stack").put_arrays(
        path, a_xy=np.round(match.a_xy, 4), b_xy=np.round(match.b_xy, 4), correlation=np.round(match.correlation, 4),
    )  # fmt: skip


def section_document(context: Context[Any], z: int) -> dict[str, Any]:
    """What the input says of a section."""
    store = context.once("input documents", context.input("stack").store)
    try:
        document: dict[str, Any] = store.get_json(f"sections/{z:06d}.json")
    except NotFoundError:
        return {"z": z, "status": "missing", "reason": "the input has no such section"}
    return document


def good_sections(context: Context[Any]) -> list[int]:
    """Numbers of the sections with tissue, ascending."""

    def find() -> list[int]:
        import numpy as np

        found = [data for _, data in context.results(PrepareSections.name)]
        contrasts = [d["contrast"] for d in found if d["status"] not in NO_PICTURE]
        least = _LEAST_CONTRAST * float(np.median(contrasts)) if contrasts else 0.0
        return [d["z"] for d in found if d["status"] not in NO_PICTURE and d["contrast"] >= least]

    good: list[int] = context.once("good sections", find)
    return good


class PrepareSections(Round):
    """Every section averaged down, its tissue marked, its contrast measured."""

    name = "sections"

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        image = input_image(context)
        for z in range(image.start_zyx[0], image.stop_zyx[0]):
            yield Task(key=f"{z:06d}", payload={"z": z})

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        import cv2

        from happyneurons.stages.align.folds import candidates
        from happyneurons.stages.align.prepare import working_picture

        cv2.setNumThreads(context.threads)
        z: int = task.payload["z"]
        document = section_document(context, z)
        status, reason = document["status"], document.get("reason")
        data = {"z": z, "status": status, "reason": reason, "contrast": 0.0}
        if status in NO_PICTURE:
            return TaskResult(data=data)
        image = input_image(context)
        px = lengths(context)
        picture = working_picture(image, input_volume(context, "mask"), z, px.factor)
        if picture.blank(context.params.least_contrast):
            data |= {"status": "blank", "reason": f"no tissue to see: contrast {picture.contrast:.2f} (sd)"}
        else:
            arrays = {"image": picture.image, "kind": picture.kind}
            if context.params.cut_folds:
                bands = candidates(picture.kind, px.node_spacing_px / px.factor)
                if bands.any():
                    data["bands"], arrays["bands"] = int(bands.max()), bands
            context.output_store("stack").put_arrays(working_path(z), **arrays)
        data |= {"contrast": round(picture.contrast, 3), "tissue": round(picture.tissue, 4)}
        _, height, width = image.shape_zyx
        return TaskResult(data=data, voxels=height * width, bytes=height * width)


class MatchPairs(Round):
    """Each good section and the next good ones above it: sections without a picture are bridged by that."""

    name = "pairs"

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        good = good_sections(context)
        for i, a in enumerate(good):
            for b in good[i + 1 : i + 1 + context.params.neighbours]:
                yield Task(key=f"{a:06d}_{b:06d}", payload={"a": a, "b": b})

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        import cv2
        import numpy as np

        from happyneurons.imaging.fits import scale_and_rotation
        from happyneurons.stages.align.matching import match_pair

        cv2.setNumThreads(context.threads)
        a, b = int(task.payload["a"]), int(task.payload["b"])
        params: AlignParams = context.params
        px = lengths(context)
        match = match_pair(self._pyramid(context, a), self._pyramid(context, b), match_settings(context))
        scale, rotation = scale_and_rotation(match.matrix[:, :2])
        # Chance reaches the higher the smaller the sections: the limit is meant for 125 x 125 px and more.
        width, height = (n / px.factor for n in input_image(context).shape_zyx[:0:-1])
        least = min(0.9, params.min_correlation * max(1.0, 125 / math.sqrt(width * height)))
        ok = (
            match.coarse_score >= least
            and match.found >= params.min_found
            and len(match.a_xy) >= 6
            and 0.9 < scale < 1.1
        )
        put_matches(context, matches_path(a, b), match.scaled(px.factor))
        if not ok:
            context.log.warning(
                "sections %d and %d do not match: correlation %.2f, %.0f %% of places found",
                a, b, match.coarse_score, 100 * match.found,
            )  # fmt: skip
        correlation = float(np.median(match.correlation)) if len(match.a_xy) else 0.0
        data = {
            "a": a, "b": b, "ok": ok, "score": round(match.coarse_score, 4), "found": round(match.found, 4),
            "matches": len(match.a_xy), "correlation": round(correlation, 4),
            "rotation_deg": round(rotation, 3), "scale": round(scale, 5),
        }  # fmt: skip
        return TaskResult(data=data)

    @staticmethod
    def _pyramid(context: Context[Any], z: int) -> list[Level]:
        """A section's pyramid; the last few are kept, because neighbouring tasks share them."""
        from happyneurons.stages.align.coarse import pyramid
        from happyneurons.stages.align.prepare import TISSUE

        kept: dict[int, list[Level]] = context.once("pyramids", dict)
        if z not in kept:
            while len(kept) > context.params.neighbours:
                kept.pop(next(iter(kept)))
            arrays = context.output_store("stack").get_arrays(working_path(z))
            kept[z] = pyramid(arrays["image"], arrays["kind"] == TISSUE, lengths(context).detail_px)
        return kept[z]


class BridgePairs(MatchPairs):
    """Around neighbours that do not match: pairs that lead past them."""

    name = "bridges"

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        good, params = good_sections(context), context.params
        joined = {(d["a"], d["b"]) for _, d in context.results(MatchPairs.name) if d["ok"]}
        tried, most = set[tuple[int, int]](), params.bridge_sections
        for i, pair in enumerate(pairwise(good)):
            if pair not in joined:
                first = range(max(0, i + 1 - most), i + 1)
                tried |= {(j, k) for j in first for k in range(i + 1, min(len(good), j + most + 1))}
        for j, k in sorted(tried):
            if k - j > params.neighbours:
                yield Task(key=f"{good[j]:06d}_{good[k]:06d}", payload={"a": good[j], "b": good[k]})


PAIR_ROUNDS = (MatchPairs.name, BridgePairs.name)
FOLD_ROUND = "folds"
PLACE_ROUNDS = ("solve", "place")
"""One of them places the sections: the second in long stacks."""


def pair_reports(context: Context[Any]) -> list[Mapping[str, Any]]:
    """What the tasks of all pairs said, with the native backend."""
    return [data for name in PAIR_ROUNDS for _, data in context.results(name)]


def cut_of(context: Context[Any], z: int) -> Cut | None:
    """Where a section is cut, None if nowhere."""
    from happyneurons.stages.align.cut_mesh import Cut

    def find() -> dict[int, Cut]:
        store = context.output_store("stack")
        torn = [data["z"] for _, data in context.results(FOLD_ROUND) if data["cut"]]
        return {z: Cut.from_arrays(store.get_arrays(cut_path(z))) for z in torn}

    cuts: dict[int, Cut] = context.once("cuts", find)
    return cuts.get(z)


def is_long(context: Context[Any]) -> bool:
    """Whether the stack is solved in windows."""
    return len(good_sections(context)) > lengths(context).window_sections


def matched_stack(context: Context[Any]) -> MatchedStack:
    """After the rounds of pairs."""
    from happyneurons.stages.align.placing import MatchedStack

    def make() -> MatchedStack:
        image, store = input_image(context), context.output_store("stack")

        def load_matches(a: int, b: int) -> Mapping[str, Any]:
            cut = not (cut_of(context, a) is None and cut_of(context, b) is None)
            return store.get_arrays((sheet_matches_path if cut else matches_path)(a, b))

        return MatchedStack(
            good_sections(context),
            pair_reports(context),
            load_matches,
            lambda z: store.get_arrays(working_path(z))["kind"],
            lambda z: cut_of(context, z),
            (image.shape_zyx[1], image.shape_zyx[2]),
            lengths(context),
            context.params,
        )

    stack: MatchedStack = context.once("matched stack", make)
    return stack


def write_placed(context: Context[Any], placed: Placed) -> TaskResult:
    """Keep the warps and figures of a placed stack."""
    from happyneurons.imaging.transforms import SECTION, transforms_path

    store = context.output_store("stack")
    corner = input_image(context).start_zyx[:0:-1]
    for z, warp in placed.warps.items():
        store.put_arrays(transforms_path(z), **warp.from_corner(corner).arrays(SECTION))
    store.put_json("solution.json", {"sections": placed.figures, "summary": placed.summary})
    return TaskResult(data=placed.summary)


def whole_stack(context: Context[Any]) -> Task:
    """The task that places all sections. Raises UserError if none has a picture."""
    good = good_sections(context)
    if not good:
        raise UserError(f"input stack: no section of {context.input('stack').uri} has a picture with tissue")
    return Task(key="stack", payload={"sections": len(good)}, cost=len(good))


class SolveStack(Round):
    """One task: the places of all sections. Long stacks have the rounds of `long_rounds` instead."""

    name = "solve"

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        if not is_long(context):
            yield whole_stack(context)

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        from happyneurons.stages.align.placing import place_stack

        return write_placed(context, place_stack(matched_stack(context)))


class RenderSections(Round):
    """Every section drawn through its warp; those without one stay blank (0)."""

    name = "render"

    def prepare(self, context: Context[Any]) -> None:
        from happyneurons.store.volumes import create_volume

        image, box = input_image(context), _output_bounds(context)
        names = ["image"] if input_volume(context, "mask") is None else ["image", "mask"]
        for name in names:
            create_volume(
                f"{context.output_uri('stack')}/{name}",
                start_zyx=box.minimum_xyz[::-1], stop_zyx=box.maximum_xyz[::-1],
                voxel_size_nm_xyz=image.voxel_size_nm_xyz, dtype="uint8", layer_type="image",
                chunk_zyx=(1, CHUNK_PX, CHUNK_PX),
            )  # fmt: skip

    def plan(self, context: Context[Any]) -> Iterable[Task]:
        image = input_image(context)
        for z in range(image.start_zyx[0], image.stop_zyx[0]):
            yield Task(key=f"{z:06d}", payload={"z": z})

    def run(self, task: Task, context: Context[Any]) -> TaskResult:
        import cv2
        import numpy as np

        from happyneurons.imaging.cut_warp import section_warp
        from happyneurons.imaging.transforms import SECTION, transforms_path
        from happyneurons.stages.align.render import blocks, draw_block

        cv2.setNumThreads(context.threads)
        z: int = task.payload["z"]
        store = context.output_store("stack")
        document = self._document(context, z)
        written = 0
        if document["status"] not in NO_PICTURE:
            warp = section_warp(store.get_arrays(transforms_path(z)), SECTION)
            image, mask = input_image(context), input_volume(context, "mask")
            out, out_mask = _output_volume(context, "image"), None if mask is None else _output_volume(context, "mask")
            shown = 0
            for box in blocks(out.start_zyx, out.stop_zyx, CHUNK_PX):
                picture, valid = draw_block(image, mask, z, warp, box, context.params.interpolation)
                out.write((z, box[0], box[1]), picture[np.newaxis])
                if out_mask is not None and valid is not None:
                    out_mask.write((z, box[0], box[1]), valid[np.newaxis])
                written += picture.size
                shown += int(np.count_nonzero(picture))
            document["shown"] = round(shown / max(1, written), 4)
        elif document["status"] == "failed":
            context.log.warning("section %d is left out: %s", z, document.get("reason"))
        store.put_json(f"sections/{z:06d}.json", document)
        return TaskResult(data={"z": z, "status": document["status"]}, voxels=written, bytes=written)

    @staticmethod
    def _document(context: Context[Any], z: int) -> dict[str, Any]:
        """Status and figures of the section: what the earlier rounds found."""

        def load() -> tuple[dict[int, Any], Mapping[str, Any], dict[int, list[float]]]:
            prepared = {data["z"]: data for _, data in context.results(PrepareSections.name)}
            solution = context.output_store("stack").find_json("solution.json") or {"sections": {}}
            jumps = {data["z"]: data["jumps_px"] for _, data in context.results(FOLD_ROUND) if data["cut"]}
            return prepared, solution["sections"], jumps

        prepared, solved, jumps = context.once("figures", load)
        if z not in prepared:
            return {"z": z, "status": "failed", "reason": "it could not be read"}
        first = {k: v for k, v in prepared[z].items() if v is not None and k != "bands"}
        if first["status"] in NO_PICTURE:
            return first
        figures = solved.get(str(z))
        if figures is None:
            return first | {"status": "blank", "reason": "far less contrast than the other sections"}
        if first["status"] == "flagged" and figures["status"] == "ok":
            figures = {**figures, "status": "flagged"}
        return first | figures | ({"fold_jumps_px": jumps[z]} if z in jumps else {})


class Align(Stage[AlignParams]):
    """Besides the stack itself the output holds `matches/` (corresponding points of pairs), `working/`
    (the averaged pictures they were found in) and `solution.json` (figures of all sections); with the
    aligntk backend, `aligntk/` (its programs' maps and scores; docs/align.md)."""

    name, version = "align", "4"
    summary = "Aligns the sections of a stack elastically; bridges bad ones; keeps scale and oblique tissue as they are"
    Params = AlignParams
    inputs = {"stack": InputSpec("section_stack", "sections, each roughly in place")}
    outputs = {"stack": OutputSpec("section_stack", "the same sections, aligned")}

    def check(self, context: Context[AlignParams]) -> None:
        stack, image = context.input("stack"), input_image(context)
        if image.dtype.name != "uint8":
            raise UserError(f"input stack: {stack.uri} has {image.dtype} pixels, expected uint8")
        if min(image.shape_zyx[1:]) < 32:
            raise UserError(f"input stack: sections of {stack.uri} are under 32 px wide: nothing to align them by")
        if context.params.backend == "aligntk":
            from happyneurons.stages.align.aligntk import Programs

            Programs.find()
        anchor = context.params.anchor
        if anchor is not None and not image.start_zyx[0] <= anchor < image.stop_zyx[0]:
            low, high = image.start_zyx[0], image.stop_zyx[0] - 1
            raise UserError(
                f"anchor: section {anchor} is not in the stack ({low} to {high})",
                [("params.anchor", f"a section number from {low} to {high}")],
            )

    def rounds(self, context: Context[AlignParams]) -> Sequence[Round]:
        if context.params.backend == "aligntk":
            from happyneurons.stages.align.aligntk_rounds import RegisterBridges, RegisterPairs, RelaxStack

            return [PrepareSections(), RegisterPairs(), RegisterBridges(), RelaxStack(), RenderSections()]
        from happyneurons.stages.align.fold_rounds import FindFolds, MatchSheets
        from happyneurons.stages.align.long_rounds import PlaceWindows, SolveAffine, SolveWindows

        pairs, folds = (MatchPairs(), BridgePairs()), (FindFolds(), MatchSheets())
        long = (SolveAffine(), SolveWindows(), PlaceWindows())
        return [PrepareSections(), *pairs, *folds, SolveStack(), *long, RenderSections()]

    def finish(self, context: Context[AlignParams]) -> StageResult:
        image, stack, box = input_image(context), context.input("stack"), _output_bounds(context)
        sections = [data["status"] for _, data in context.results(RenderSections.name)]
        sections += ["failed"] * len(context.quarantined(RenderSections.name))
        metrics: dict[str, float] = {
            f"sections_{status}": float(sections.count(status)) for status in ("ok", "flagged", *NO_PICTURE)
        }
        metrics["sections_cut"] = float(sum(data["cut"] for _, data in context.results(FOLD_ROUND)))
        pairs = [data["ok"] for data in pair_reports(context)]
        metrics["pairs_ok"] = float(sum(pairs))
        metrics["pairs_failed"] = float(len(pairs) - sum(pairs) + sum(len(context.quarantined(n)) for n in PAIR_ROUNDS))
        for _, summary in (r for name in PLACE_ROUNDS for r in context.results(name)):
            metrics |= {name: float(value) for name, value in summary.items()}
        output = Output(
            "section_stack", image.voxel_size_nm_xyz, box,
            {
                "source": stack.uri, "image": "image", "sections": "sections", "transforms": "transforms",
                "mask": input_volume(context, "mask") is not None,
                "z_range": [image.start_zyx[0], image.stop_zyx[0]], "anchor": context.params.anchor,
            },
        )  # fmt: skip
        return StageResult({"stack": output}, metrics)


def _output_bounds(context: Context[Any]) -> Bounds:
    image, margin = input_image(context), context.params.margin_px
    (z0, y0, x0), (z1, y1, x1) = image.start_zyx, image.stop_zyx
    return Bounds(
        minimum_xyz=(x0 - margin, y0 - margin, z0), maximum_xyz=(x1 + margin, y1 + margin, z1)
    )  # fmt: skip


def _output_volume(context: Context[Any], name: str) -> PrecomputedVolume:
    from happyneurons.store.volumes import PrecomputedVolume

    uri = f"{context.output_uri('stack')}/{name}"
    volume: PrecomputedVolume = context.once(uri, lambda: PrecomputedVolume(uri))
    return volume
