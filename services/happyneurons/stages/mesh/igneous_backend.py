"""The same surfaces by igneous' own task (GPL; extra `igneous`), as a reference to compare with.

Its MeshTask writes beside the segmentation that it reads, which would change an artifact. With
`sharded` and `frag_path` its one file goes to the rank's scratch folder instead; the pieces are
taken from there.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from happyneurons.errors import UserError
from happyneurons.imaging.blocks import Block
from happyneurons.stages.mesh.surfaces import Surface
from happyneurons.store.cloud import cloudpath

EXTRA = "the igneous backend needs the package igneous-pipeline: pip install 'happyneurons[igneous]'"


def igneous_surfaces(
    volume_uri: str,
    mip: int,
    block: Block,
    skip: Sequence[int],
    scratch: Path,
    *,
    max_error_nm: float,
    reduction: int,
) -> dict[int, Surface]:
    """Surfaces of a block's labels, those in `skip` left out."""
    if volume_uri.startswith("h5://"):
        raise UserError(f"{volume_uri}: the igneous backend reads precomputed volumes only; convert it first")
    try:
        from igneous.tasks import MeshTask
        from mapbuffer import MapBuffer
    except ImportError:
        raise UserError(EXTRA) from None
    name = f"fragments-{uuid.uuid4().hex}"
    shape = np.subtract(block.stop_zyx, block.start_zyx)[::-1]
    MeshTask(
        tuple(int(v) for v in shape), block.start_zyx[::-1], cloudpath(volume_uri),
        mip=mip, simplification_factor=reduction, max_simplification_error=max_error_nm,
        frag_path=scratch.as_uri(), mesh_dir=name, sharded=True, spatial_index=False, fill_missing=True,
        exclude_object_ids=list(skip),
    ).execute()  # fmt: skip
    surfaces: dict[int, Surface] = {}
    for path in sorted((scratch / name).glob("*.frags")):
        for label, data in MapBuffer(path.read_bytes()).items():
            surface = Surface.from_bytes(data)
            if len(surface.faces):
                surfaces[int(label)] = surface
        path.unlink()
    return surfaces
