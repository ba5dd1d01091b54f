"""Mesh and skeleton layers as folders of their own, read with CloudVolume.

An artifact never changes, so meshes of a segmentation cannot be written into its folder: they lie
in a folder of their own with the `info` that Neuroglancer expects of a mesh or skeleton source.
CloudVolume looks for both inside a segmentation; it gets a description of one, in memory only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from happyneurons.errors import NotFoundError, UserError
from happyneurons.store.cloud import cloud_secrets, cloudpath
from happyneurons.store.documents import Store, normalize_uri
from happyneurons.store.roots import check_open


def is_web(uri: str) -> bool:
    """Whether a URI is the address of a web server, which is read and never listed."""
    return uri.startswith(("http://", "https://"))


def open_meshes(uri: str, info: Mapping[str, Any] | None = None) -> Any:
    """CloudVolume's reader of a mesh layer: `.get(ids, lod=0)` → {id: Mesh}, vertices (x, y, z) in nm;
    `.spatial_index.query(bbox)` → ids whose meshes reach into a box (nm).

    info: the layer's, if it is known; needed for http(s)://…"""
    return _layer(uri, "mesh", info).mesh


def open_skeletons(uri: str, info: Mapping[str, Any] | None = None) -> Any:
    """CloudVolume's reader of a skeleton layer: `.get(id)` → Skeleton, vertices (x, y, z) in nm, and the same index."""
    return _layer(uri, "skeletons", info).skeleton


def _layer(uri: str, name: str, own: Mapping[str, Any] | None) -> Any:
    from cloudvolume import CloudVolume

    uri = uri.removeprefix("precomputed://").rstrip("/")
    uri = uri if is_web(uri) else normalize_uri(uri)
    check_open(uri)
    parent, _, folder = uri.rpartition("/")
    if not folder:
        raise UserError(f"{uri}: not the folder of a mesh or skeleton layer")
    # Meshes and skeletons are in nm already (identity transforms): only the spatial index needs a scale.
    try:
        own = Store(uri).get_json("info") if own is None else own
    except NotFoundError:
        raise UserError(f"{uri}: no mesh or skeleton layer there (no info file)") from None
    index = own.get("spatial_index") or {}
    if not {"voxel_offset", "size"} <= set(index):  # another program's, which stands inside of a segmentation
        index = {}
    info = CloudVolume.create_new_info(
        num_channels=1, layer_type="segmentation", data_type="uint64", encoding="raw",
        resolution=index.get("resolution", [1, 1, 1]), voxel_offset=index.get("voxel_offset", [0, 0, 0]),
        volume_size=index.get("size", [1, 1, 1]), chunk_size=[1, 1, 1],
    )  # fmt: skip
    info["scales"] *= int(own.get("mip") or 0) + 1  # the index is that of level `mip`
    info[name] = folder
    path = f"precomputed://{parent}" if is_web(uri) else cloudpath(parent)
    return CloudVolume(path, info=info, progress=False, secrets=cloud_secrets())
