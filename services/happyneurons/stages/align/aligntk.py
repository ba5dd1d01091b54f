"""AlignTK's programs: where they are, how they are started, and the files they read and write.

AlignTK (Pittsburgh Supercomputing Center, GPL-3) is only ever called as processes. Version 1.0.2
is what this is written for. Its options for folders are prefixes of file names: the / at the end
belongs to them.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from happyneurons.errors import TaskError, UserError
from happyneurons.imaging.aligntk_maps import AlignTKMap, parse_map
from happyneurons.jobs.programs import last_words, run_program
from happyneurons.stages.align.params import AlignTKParams

BIN, LAUNCHER = "HPN_ALIGNTK_BIN", "HPN_ALIGNTK_LAUNCHER"
PROGRAMS = ("find_rst", "register", "align")
# Nodes lie 64 px apart unless fewer than so many cells would fit across a section.
_LEVEL, _LEAST_CELLS = 6, 8
_DEPTH = 6
_MAX_RESOLUTION_PX = 8192
# What MPI tells our ranks of themselves; a program that inherits it takes itself for one of them.
_RANK_VARIABLES = ("PMI_", "PMIX_", "PALS_", "HYDI_", "HYDRA_", "MPI_LOCAL", "OMPI_")
_COMMAND = "$ "  # how a log's first line begins


def section_name(z: int) -> str:
    """Name of a section in AlignTK's lists and file names."""
    return f"{z:06d}"


def pair_name(a: int, b: int) -> str:
    return f"{section_name(a)}_{section_name(b)}"


def node_level(settings: AlignTKParams, width: int, height: int) -> int:
    """log2 of the distance of the maps' nodes for sections of that many (working) px."""
    if settings.level is not None:
        return settings.level
    return max(2, min(_LEVEL, int(np.log2(min(width, height) / _LEAST_CELLS))))


@dataclass(frozen=True)
class Programs:
    """folder: where the executables are. launcher: what starts them; empty: they are started by themselves.

    By itself a program does its work in one process. Under MPI, rank 0 of `find_rst` and `register`
    only coordinates: n ranks have n - 1 workers, and a pair keeps one of them busy.
    """

    folder: Path
    launcher: tuple[str, ...] = ()

    @classmethod
    def find(cls, environment: Mapping[str, str] = os.environ) -> Programs:
        """Those in the folder HPN_ALIGNTK_BIN, or on PATH. Raises UserError if there are none."""
        advice = (
            f"the aligntk backend needs AlignTK's programs {', '.join(PROGRAMS)} (GPL-3, not part of HAPPYNeurons): "
            f"build AlignTK 1.0.2 and set {BIN} to the folder that holds them"
        )
        given = environment.get(BIN)
        if given:
            folder = Path(given).expanduser().absolute()
        else:
            first = shutil.which(PROGRAMS[0], path=environment.get("PATH"))
            if first is None:
                raise UserError(f"AlignTK is not installed: {advice}", [("params.backend", "native, or AlignTK there")])
            folder = Path(first).absolute().parent
        lacking = [name for name in PROGRAMS if not os.access(folder / name, os.X_OK) or (folder / name).is_dir()]
        if lacking:
            raise UserError(
                f"{BIN if given else 'PATH'}: {folder} has no program {', '.join(lacking)}; {advice}",
                [("params.backend", "native, or AlignTK there")],
            )
        launcher = tuple(shlex.split(environment.get(LAUNCHER, "")))
        if launcher and shutil.which(launcher[0], path=environment.get("PATH")) is None:
            raise UserError(f"{LAUNCHER}: there is no program {launcher[0]}; give a command such as 'mpiexec -n 2'")
        return cls(folder, launcher)

    def run(
        self,
        program: str,
        arguments: Sequence[str],
        folder: Path,
        log: Path,
        *,
        limit_s: float,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        """Run a program in a folder to its end, what it says into `log`.

        Raises TaskError if it fails or takes longer than limit_s, DrainedError once `stopping` says so.
        """
        command = [*self.launcher, str(self.folder / program), *arguments]
        log.write_text(f"{_COMMAND}{shlex.join(command)}\n")
        try:
            code = run_program(
                command, log, folder=folder, environment=_environment(), limit_s=limit_s, stopping=stopping
            )  # fmt: skip
        except TimeoutError:
            raise TaskError(
                f"AlignTK's {program} was ended after {limit_s / 60:.3g} min: params.aligntk.time_limit_min"
            ) from None
        if code != 0:
            how = f"was killed by signal {-code}" if code < 0 else f"failed with exit code {code}"
            raise TaskError(f"AlignTK's {program} {how}: {last_words(log, _COMMAND)}")


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_RANK_VARIABLES)}
    # Of Open MPI: the coordinating rank waits in a loop that would else take a core.
    return kept | {"OMPI_MCA_mpi_yield_when_idle": "1"}


# --- files -------------------------------------------------------------------------------------------


def write_picture(folder: Path, z: int, image: NDArray[np.uint8], valid: NDArray[np.bool_]) -> None:
    """A section as images/Z.tif (8 bit, (y, x)) and masks/Z.pbm (P4; a set bit is a valid px) below `folder`."""
    from PIL import Image

    for name in ("images", "masks"):
        (folder / name).mkdir(exist_ok=True)
    # Not compressed: any libtiff reads that.
    Image.fromarray(image).save(folder / "images" / f"{section_name(z)}.tif")
    height, width = valid.shape
    bits = np.packbits(valid, axis=1).tobytes()
    (folder / "masks" / f"{section_name(z)}.pbm").write_bytes(f"P4\n{width} {height}\n".encode() + bits)


def write_list(path: Path, rows: Sequence[Sequence[object]]) -> None:
    path.write_text("".join(" ".join(str(value) for value in row) + "\n" for row in rows))


def read_checked_map(path: Path, program: str) -> AlignTKMap:
    """A map that a program must have written. Raises TaskError if it is missing or broken."""
    try:
        return parse_map(path.read_bytes(), path.name)
    except FileNotFoundError:
        raise TaskError(f"AlignTK's {program} ended well but wrote no {path.name}") from None
    except UserError as error:
        raise TaskError(f"AlignTK's {program}: {error}") from None


def read_score(path: Path, program: str) -> list[float]:
    """The five numbers of a .score file, the first of which is the score. Raises TaskError without them.

    Of find_rst: quality, rotation (degrees), scale, x and y shift (px). Of register: score, that is
    the correlation less the weighted distortion, correlation, distortion, two that are 0 here.
    """
    try:
        values = [float(word) for word in path.read_text().split()]
    except FileNotFoundError:
        raise TaskError(f"AlignTK's {program} ended well but wrote no {path.name}") from None
    except ValueError:
        values = []
    if len(values) != 5 or not np.isfinite(values).all():
        raise TaskError(f"AlignTK's {program}: {path.name} does not hold five numbers")
    return values


# --- options -----------------------------------------------------------------------------------------


def find_rst_options(max_rotation_deg: float, max_shift: tuple[float, float]) -> list[str]:
    """Rotation, scale and shift of a pair. max_shift: largest shift in x and y, parts of the section's size."""
    tx, ty = (min(100.0, 100.0 * part) for part in max_shift)
    return [
        "-pairs", "pairs.lst", "-tif", "-images", "images/", "-mask", "masks/", "-output", "cmaps/",
        "-rotation", f"-{max_rotation_deg:.4f}-{max_rotation_deg:.4f}", "-max_res", str(_MAX_RESOLUTION_PX),
        "-scale", "0.9-1.1", "-tx", f"-{tx:.4f}-{tx:.4f}", "-ty", f"-{ty:.4f}-{ty:.4f}",
        "-summary", "cmaps/summary.out",
    ]  # fmt: skip


def register_options(settings: AlignTKParams, level: int) -> list[str]:
    """The elastic map of a pair, from that of find_rst on."""
    return [
        "-pairs", "pairs.lst", "-tif", "-images", "images/", "-mask", "masks/", "-output", "maps/",
        "-initial_map", "cmaps/", "-distortion", f"{settings.distortion:.6f}", "-output_level", str(level),
        "-depth", str(_DEPTH), "-quality", f"{settings.quality:.6f}", "-summary", "maps/summary.out",
    ]  # fmt: skip


def align_options(fixed: Sequence[int]) -> list[str]:
    """All sections at once. Not -incremental: then maps are there only if the whole schedule was carried out.

    (`align` ends with exit code 0 where it meets a fold; with -incremental, the maps of the step
    before would lie there like a result.)
    """
    options = [
        "-images", "images/", "-image_list", "images.lst", "-map_list", "pairs.lst", "-maps", "maps/",
        "-output", "amaps/", "-schedule", "schedule.lst", "-font", "font.pgm",
    ]  # fmt: skip
    for z in fixed:
        options += ["-fixed", section_name(z)]
    return options


def write_schedule(path: Path, settings: AlignTKParams, level: int) -> None:
    write_list(path, [(level + above, f"{intra:g}", f"{inter:g}") for above, intra, inter in settings.schedule])


def write_blank_font(path: Path) -> None:
    """`align` wants a font (95 characters above one another) for labels that we let nobody draw."""
    path.write_bytes(b"P5\n1 95\n255\n" + bytes(95))
