"""What the demo begins with: a phantom of neurites and a microscope that photographs it."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from happyneurons.errors import UserError

MODEL = Path(__file__).parents[1] / "models" / "demo_ffn"
OVERLAP_PX = 28


@dataclass(frozen=True)
class DemoSettings:
    """Size and shape of the demo. size_xyz: voxels of the phantom; anisotropy: z spacing by x spacing."""

    size_xyz: tuple[int, int, int] = (256, 256, 64)
    seed: int = 7
    anisotropy: float = 1.0
    ranks: int = 2


@dataclass(frozen=True)
class DemoInput:
    acquisition: Path
    objects: int
    wall_s: float


def prepare(folder: Path, settings: DemoSettings) -> DemoInput:
    """Make phantom and acquisition in a folder; what is there already is kept.

    Raises UserError if the folder holds a demo of other settings.
    """
    from happyneurons.acquisition.phantom import make_phantom, write_phantom
    from happyneurons.acquisition.simulate import simulate_acquisition

    began = time.monotonic()
    described: dict[str, Any] = {
        "size_xyz": list(settings.size_xyz), "seed": settings.seed, "anisotropy": settings.anisotropy,
    }  # fmt: skip
    mark = folder / "phantom" / "settings.json"
    known = json.loads(mark.read_text()) if mark.exists() else None
    if known is not None and known["settings"] != described:
        raise UserError(f"{folder} holds a demo of other settings: give --output another folder, or remove it")
    if known is None:
        phantom = make_phantom(settings.size_xyz[::-1], seed=settings.seed, anisotropy=settings.anisotropy)
        write_phantom(phantom, (folder / "phantom").as_uri())
        known = {"settings": described, "objects": phantom.objects}
        mark.write_text(json.dumps(known))
    image_uri, labels_uri = ((folder / "phantom" / name).as_uri() for name in ("image", "labels"))
    simulate_acquisition(
        image_uri, folder / "acquisition", labels_uri=labels_uri, tiles=(2, 1), overlap_px=OVERLAP_PX,
        seed=settings.seed,
    )  # fmt: skip
    return DemoInput(folder / "acquisition", known["objects"], round(time.monotonic() - began, 2))
