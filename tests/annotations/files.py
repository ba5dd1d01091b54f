"""Annotations as a person's work would leave them: zips in the form of WEBKNOSSOS."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from happyneurons.formats.base import WriteOptions
from happyneurons.formats.registry import make_writer
from tests.formats.volumes import info_of, write_levels

VOLUME = '<volume id="0" name="Volume" location="data_Volume.zip"{fallback} />'
TREE = """<thing id="4" name="axon"><nodes><node id="1" x="6" y="8" z="4" /><node id="2" x="9" y="12" z="4" />
<node id="3" x="9.5" y="12" z="6" /></nodes><edges><edge source="1" target="2" /></edges></thing>
<thing id="7" name="soma"><nodes><node id="9" x="20" y="20" z="10" /></nodes><edges /></thing>
<comments><comment node="2" content="branch" /></comments>"""


def nml(body: str, dataset: str = "crop", size: Sequence[float] = (4.6, 4.6, 45.0), boxes: str = "") -> str:
    scale = " ".join(f'{axis}="{value}"' for axis, value in zip("xyz", size, strict=True))
    return f'<things><parameters><experiment name="{dataset}" /><scale {scale} />{boxes}</parameters>{body}</things>'


def data_zip(folder: Path, array: np.ndarray, start_zyx: tuple[int, int, int], name: str = "webknossos-wkw") -> bytes:
    """A volume layer's data as a server packs it: files of 32³ voxels, magnification folders at the top."""
    options = WriteOptions(chunk_px=32, shard_px=32)
    info = info_of(array, labels=True, start_zyx=start_zyx)
    write_levels(make_writer(f"{folder}/layer?volumeAnnotationData", name, [info], options), array)
    layer = folder / "layer" / "volumeAnnotationData"
    return zipped({p.relative_to(layer).as_posix(): p.read_bytes() for p in sorted(layer.rglob("*")) if p.is_file()})


def zipped(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def annotation(path: Path, body: str, data: bytes | None = None, **changes: object) -> str:
    files = {"crop__explorational.nml": nml(body, **changes).encode()}  # type: ignore[arg-type]
    if data is not None:
        files["data_Volume.zip"] = data
    path.write_bytes(zipped(files))
    return str(path)
