"""Mesh and skeleton layers, wherever they lie, read segment by segment with CloudVolume."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from happyneurons.errors import HappyError, NotFoundError, TaskError, UserError
from happyneurons.store.artifacts import Artifact, load_artifact
from happyneurons.store.cloud import volume_errors
from happyneurons.store.documents import Store, canonical_json, local_path
from happyneurons.store.external import LAYER_KINDS
from happyneurons.store.layers import is_web, open_meshes, open_skeletons
from happyneurons.store.roots import SECRET, check_open, secret_in
from happyneurons.store.skeletons import SkeletonLayer
from happyneurons.viewer.published import document_of

MESHES, SKELETONS = "mesh_layer", "skeleton_layer"
# What a segmentation's `info` calls the folder inside of it, and the stage that makes such a layer.
_INSIDE = {MESHES: ("mesh", "mesh"), SKELETONS: ("skeletons", "skeletonize")}
_WORDS = {MESHES: "meshes", SKELETONS: "skeletons"}
LISTED = 100_000
"""So long are our layers' own tables at most (happyneurons.jobs.objects)."""
MULTIRES, LEGACY = "neuroglancer_multilod_draco", "neuroglancer_legacy_mesh"
# As files of segments are named: two for each of several levels, a list of fragments, a skeleton.
_NAMES = {MULTIRES: re.compile(r"(\d+)\.index(\.gz)?"), LEGACY: re.compile(r"(\d+):0(\.gz)?")}


@dataclass(frozen=True)
class Layer:
    """A layer of meshes or skeletons. uri: how its source is called; digest: stands for its content."""

    kind: str
    uri: str
    data_uri: str
    digest: str
    info: Mapping[str, Any]

    @property
    def multires(self) -> bool:
        """Whether meshes have levels of detail."""
        return self.info.get("@type") == MULTIRES


def find_layer(artifacts: Mapping[str, Artifact], kind: str) -> Layer:
    """The one layer of a kind (mesh_layer, skeleton_layer) among artifacts, by name; a segmentation's own counts if
    there is no layer by itself. Raises UserError if there is none, or more than one."""
    by_name = {name: a for name, a in artifacts.items() if a.kind == kind}
    inside, stage = _INSIDE[kind]
    if not by_name:
        by_name = {n: a for n, a in artifacts.items() if a.kind == "segmentation" and _own(a, inside) is not None}
    if len(by_name) > 1:
        raise UserError(f"{_WORDS[kind]} of {', '.join(by_name)}: say which, --only {next(iter(by_name))}")
    if not by_name:
        kinds = ", ".join(f"{name} ({a.kind})" for name, a in artifacts.items()) or "nothing"
        raise UserError(f"there are no {_WORDS[kind]}: found {kinds}; the stage `{stage}` makes them of a segmentation")
    return open_layer(next(iter(by_name.values())), kind)


def open_layer(source: Artifact | str, kind: str) -> Layer:
    """An artifact (or URI of one, or http(s)://… of a precomputed layer) as a layer. Raises UserError."""
    if secret_in(source if isinstance(source, str) else source.uri):
        raise UserError(f"a source may have {SECRET}")  # it would be written into each file
    artifact = artifact_of(source) if isinstance(source, str) else source
    inside, stage = _INSIDE[kind]
    digest, where = artifact.digest, artifact.data_uri
    if artifact.kind == kind and not artifact.uri.startswith("swc://"):
        info = _info(artifact)
    elif artifact.kind == "segmentation":
        folder = _own(artifact, inside)
        if folder is None:
            raise UserError(f"{artifact.uri}: a segmentation without {_WORDS[kind]}; the stage `{stage}` makes them")
        where = f"{where}/{folder}"
        try:
            info = _info(artifact, f"{folder}/info")
        except NotFoundError:  # the oldest meshes have none
            info = {}
            local = None if is_web(where) else local_path(where)
            if local is not None and not local.is_dir():
                raise UserError(f"{artifact.uri}: its info names {_WORDS[kind]}, but there is no {local}") from None
        digest = hashlib.sha256(canonical_json([digest, folder, dict(info)])).hexdigest()
    else:
        found = "SWC files already" if artifact.uri.startswith("swc://") else f"a {artifact.kind}"
        raise UserError(f"{artifact.uri}: {found}, not a layer of {_WORDS[kind]}")
    return Layer(kind, artifact.uri, where, digest, info)


def artifact_of(uri: str) -> Artifact:
    """`load_artifact`, and precomputed layers on the web. Raises UserError, UnavailableError."""
    address = uri.removeprefix("precomputed://").rstrip("/")
    if not is_web(address):
        return load_artifact(uri)
    check_open(address)
    try:
        info = document_of(Artifact(kind="segmentation", uri=address, data_uri=address, digest=""), "info")
    except (NotFoundError, ValueError):
        raise UserError(f"{address}: no precomputed layer there (info), nor anything that was published") from None
    described = str(info.get("@type", "")) if isinstance(info, dict) else ""
    labels = isinstance(info, dict) and info.get("type") == "segmentation"
    kind = LAYER_KINDS.get(described, "segmentation" if labels else "image_volume")
    digest = hashlib.sha256(canonical_json([address, info])).hexdigest()
    return Artifact(kind=kind, uri=address, data_uri=address, digest=digest, properties={"external": True})


def _info(artifact: Artifact, path: str = "info") -> dict[str, Any]:
    try:
        info = document_of(artifact, path)
    except NotFoundError:
        if path != "info":
            raise
        raise UserError(f"{artifact.uri}: no mesh or skeleton layer there (no info file)") from None
    except ValueError as error:
        raise UserError(f"{artifact.uri}: its {path} is not JSON ({error})") from None
    if not isinstance(info, dict):
        raise UserError(f"{artifact.uri}: its {path} does not describe a layer")
    return info


def _own(segmentation: Artifact, inside: str) -> str | None:
    """The folder of a segmentation's own meshes or skeletons, as its `info` has it."""
    if segmentation.data_uri.startswith("h5://"):
        return None
    folder = _info(segmentation).get(inside)
    if not folder:
        return None
    if not isinstance(folder, str) or "://" in folder or folder.startswith("/") or ".." in folder.split("/"):
        raise UserError(f"{segmentation.uri}: its {inside}, {folder!r}, lie elsewhere; name their layer itself")
    return folder.strip("/")


class Reader:
    """Segments of a layer. `read` gives None for those that have nothing; from any number of threads."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self._local = threading.local()
        with volume_errors(layer.data_uri, "volume_open"):
            self._open()

    def read(self, segment: int, lod: int = 0) -> Any | None:
        """CloudVolume's Mesh or Skeleton, vertices (x, y, z) in nm. lod: of a mesh, 0 is the finest; a mesh with fewer
        levels gives its coarsest. Raises TaskError if what is there cannot be read, StoreError."""
        try:
            with volume_errors(self.layer.data_uri, "segment_get"):
                if self.layer.kind == SKELETONS:
                    return self._skeleton(segment)
                return self._mesh(segment, lod)
        except HappyError:
            raise
        except Exception as error:
            raise TaskError(f"segment {segment}: {type(error).__name__}: {error}") from error

    def ids(self) -> list[int]:
        """All segments of the layer, ascending. Raises UserError where they cannot be listed."""
        if is_web(self.layer.data_uri):
            listed = self._listed()
            if listed is None or len(listed[0]) >= LISTED:
                raise UserError(f"{self.layer.data_uri}: a web server does not list files; name segments with --ids")
            return sorted(listed[0])
        store = Store(self.layer.data_uri)
        if self.layer.kind == SKELETONS:
            return [int(name) for name in SkeletonLayer(store).names()]
        if self.layer.multires and self.layer.info.get("sharding"):
            return sorted(self._shards(store))
        pattern = _NAMES[MULTIRES if self.layer.multires else LEGACY]
        found = (pattern.fullmatch(path) for path in store.list("") if "/" not in path)
        return sorted({int(match[1]) for match in found if match})

    def largest(self, count: int) -> list[int]:
        """The largest segments by the layer's own table (voxels of meshes, path of skeletons), largest first.

        Raises UserError if it has no such table."""
        listed = self._listed()
        if listed is None or listed[1] is None:
            raise UserError(
                f"{self.layer.data_uri}: there is no table of sizes (segment_properties); name segments with --ids"
            )
        ids, sizes = listed[0], listed[1]
        if count > len(ids) >= LISTED:
            raise UserError(f"--largest {count}: the layer's table lists the {len(ids)} largest only; take --all")
        order = np.lexsort((np.array(ids, np.uint64), -np.array(sizes, np.float64)))
        return [ids[i] for i in order[:count]]

    def _listed(self) -> tuple[list[int], list[float] | None] | None:
        """(ids, a number of each that says how large it is) of the layer's segment_properties; None if it has none."""
        folder = self.layer.info.get("segment_properties")
        if not isinstance(folder, str) or not folder or ".." in folder.split("/") or "://" in folder:
            return None
        artifact: Any = Artifact(kind="segmentation", uri=self.layer.uri, data_uri=self.layer.data_uri, digest="")
        try:
            inline = document_of(artifact, f"{folder}/info")["inline"]
            ids = [int(v) for v in inline["ids"]]
            numbers = [p["values"] for p in inline.get("properties", ()) if p.get("type") == "number"]
        except NotFoundError:
            return None
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(f"{self.layer.data_uri}/{folder}: not a list of segments ({error!r})") from None
        return ids, [float(v) for v in numbers[0]] if numbers else None

    def _shards(self, store: Store) -> Iterator[int]:
        reader, folder = self._open().reader, self.layer.data_uri.rpartition("/")[2]
        for path in store.list(""):
            if "/" not in path and path.endswith(".shard"):
                with volume_errors(self.layer.data_uri, "segments_list"):
                    yield from (int(label) for label in reader.list_labels(path, path=folder))

    def _open(self) -> Any:
        """CloudVolume's reader, one in each thread."""
        if not hasattr(self._local, "reader"):
            opened = open_skeletons if self.layer.kind == SKELETONS else open_meshes
            self._local.reader = opened(self.layer.data_uri, self.layer.info)
        return self._local.reader

    def _skeleton(self, segment: int) -> Any | None:
        from cloudvolume.exceptions import EmptyFileException

        reader = self._open()
        reader.meta.info.setdefault("vertex_attributes", [])
        if not self.layer.info.get("sharding"):
            return reader.get(segment, allow_missing=True)
        try:
            return reader.get(segment)
        except EmptyFileException:
            return None

    def _mesh(self, segment: int, lod: int) -> Any | None:
        reader = self._open()
        if not self.layer.multires:
            if not any(reader.exists([segment]).values()):
                return None
            names = reader._get_manifests([segment])[segment]
            if any("/" in name for name in names):
                raise TaskError(f"segment {segment}: fragments outside of the layer's folder")
            return reader.get(segment, remove_duplicate_vertices=False) if names else None
        manifest = reader.get_manifest(segment)
        if manifest is None:
            return None
        return reader.get([segment], lod=min(lod, manifest.num_lods - 1)).get(segment)
