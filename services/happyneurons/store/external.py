"""Data made elsewhere, used in place as artifacts.

`precomputed://URI` (or any store URI of a folder with an `info` file) and `h5://FILE?DATASET`
are volumes; a folder with `model.json` and a TensorFlow 1 checkpoint prefix (`ckpt://PREFIX`)
are models. Their digest is made of what identifies them cheaply: the URI with the `info` file's
bytes, or a local file's size and modification time. Precomputed folders of meshes and of skeletons, and `swc://FOLDER`,
are mesh and skeleton layers. Whoever changes voxels in place under the
same `info` file must give the volume another name; `hpn explain` shows the digest.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from happyneurons.errors import NotFoundError, UserError
from happyneurons.store.artifacts import Artifact, ArtifactKind, Bounds
from happyneurons.store.documents import Store, canonical_json, local_path, normalize_uri

LAYER_KINDS: dict[str, ArtifactKind] = {
    "neuroglancer_skeletons": "skeleton_layer",
    "neuroglancer_multilod_draco": "mesh_layer",
    "neuroglancer_legacy_mesh": "mesh_layer",
}
"""What an `info` file says of itself (`@type`) if it is not a volume's."""


def external_artifact(uri: str) -> Artifact:
    """Describe external data as an artifact. Raises UserError if it cannot be opened."""
    if uri.startswith("h5://"):
        return _hdf5(uri)
    if uri.startswith("ckpt://"):
        return _checkpoint(uri)
    if uri.startswith("swc://"):
        return _swc_folder(uri)
    data_uri = normalize_uri(uri.removeprefix("precomputed://"))
    folder = local_path(data_uri)
    if folder is not None and not folder.exists():
        raise UserError(f"input {uri}: there is no {folder}")
    store = Store(data_uri)
    try:
        info = store.get("info")
        for name, kind in LAYER_KINDS.items():
            if name.encode() in info:
                return _layer(kind, uri, data_uri, info)
        return _precomputed(uri, data_uri, info)
    except NotFoundError:
        pass
    try:
        model = store.get("model.json")
    except NotFoundError:
        raise UserError(
            f"input {uri}: neither a precomputed volume (info) nor a model (model.json); "
            "HDF5 volumes are written h5://FILE?DATASET, TensorFlow checkpoints ckpt://PREFIX"
        ) from None
    weights = hashlib.sha256(store.get("weights.npz")).hexdigest()
    return Artifact(
        kind="model", uri=uri, data_uri=data_uri, properties=json.loads(model),
        digest=_digest("model", model.decode(), weights),
    )  # fmt: skip


def _precomputed(uri: str, data_uri: str, info_bytes: bytes) -> Artifact:
    try:
        info = json.loads(info_bytes)
        scale = info["scales"][0]
        low = [int(v) for v in scale.get("voxel_offset", [0, 0, 0])]
        high = [a + int(b) for a, b in zip(low, scale["size"], strict=True)]
        kind: ArtifactKind = "segmentation" if info["type"] == "segmentation" else "image_volume"
        x_nm, y_nm, z_nm = (float(v) for v in scale["resolution"])
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"input {uri}: its info file does not describe a precomputed volume ({error!r})") from None
    return Artifact(
        kind=kind, uri=uri, data_uri=data_uri,
        digest=_digest(kind, data_uri, hashlib.sha256(info_bytes).hexdigest()),
        voxel_size_nm_xyz=(x_nm, y_nm, z_nm),
        bounds=Bounds(minimum_xyz=(low[0], low[1], low[2]), maximum_xyz=(high[0], high[1], high[2])),
        properties={"external": True},
    )  # fmt: skip


def _layer(kind: ArtifactKind, uri: str, data_uri: str, info_bytes: bytes) -> Artifact:
    return Artifact(
        kind=kind, uri=uri, data_uri=data_uri, properties={"external": True},
        digest=_digest(kind, data_uri, hashlib.sha256(info_bytes).hexdigest()),
    )  # fmt: skip


def _swc_folder(uri: str) -> Artifact:
    data_uri = normalize_uri(uri.removeprefix("swc://"))
    folder = local_path(data_uri)
    if folder is not None and not folder.is_dir():
        raise UserError(f"input {uri}: there is no folder {folder}")
    store = Store(data_uri)
    files = sorted(path for path in store.list("") if "/" not in path and path.endswith(".swc"))
    if not files:
        raise UserError(f"input {uri}: no SWC files (NAME.swc) there")
    known = [[file, store.stat(file)[0] if folder is None else _stat(str(folder / file))] for file in files]
    return Artifact(
        kind="skeleton_layer", uri=uri, data_uri=data_uri, properties={"external": True, "count": len(files)},
        digest=_digest("skeleton_layer", data_uri, known),
    )  # fmt: skip


def _hdf5(uri: str) -> Artifact:
    from happyneurons.store.volumes import Hdf5Volume, parse_h5_uri

    volume = Hdf5Volume(uri)
    path, dataset = parse_h5_uri(uri)
    integer = volume.dtype.kind in "ui" and volume.dtype.itemsize > 1
    kind: ArtifactKind = "segmentation" if integer else "image_volume"
    low, high = volume.start_zyx[::-1], volume.stop_zyx[::-1]
    return Artifact(
        kind=kind, uri=uri, data_uri=f"h5://{path}?{dataset}",
        digest=_digest(kind, path, dataset, _stat(path)),
        voxel_size_nm_xyz=volume.voxel_size_nm_xyz,
        bounds=Bounds(minimum_xyz=low, maximum_xyz=high),
        properties={"external": True},
    )  # fmt: skip


def _checkpoint(uri: str) -> Artifact:
    prefix = local_path(uri.removeprefix("ckpt://"))
    index = None if prefix is None else prefix.with_name(prefix.name + ".index")
    if index is None or not index.exists():
        raise UserError(f"input {uri}: no TensorFlow checkpoint there ({index} is missing)")
    return Artifact(
        kind="model", uri=uri, data_uri=f"ckpt://{prefix}", digest=_digest("model", index.name, _stat(str(index))),
        properties={"external": True},
    )  # fmt: skip


def _stat(path: str) -> str:
    import os

    s = os.stat(path)
    return f"{s.st_size}:{s.st_mtime_ns}"


def _digest(*parts: Any) -> str:
    return hashlib.sha256(canonical_json(list(parts))).hexdigest()
