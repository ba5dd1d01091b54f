"""Artifacts: typed references to data in the store, and the manifests that publish them.

A job's outputs are written under `artifacts/KEY/OUTPUT/` and become visible by the one
put-if-absent of `jobs/KEY/manifest.json`. An artifact's URI is
`STORE/jobs/KEY/manifest.json#OUTPUT`. Data made elsewhere is referenced in place
(`precomputed://…`, `h5://FILE?DATASET`, a folder of tiles): see :mod:`happyneurons.store.external`.

Kinds and what lies under an artifact's `data_uri`
--------------------------------------------------
tile_set       `sections/{z:06d}.json`: one document a section: `{"z", "status", "tiles": [{"uri",
               "row", "col", "x_px", "y_px", "width", "height", "sha256", "status", "problem"}]}`,
               x_px/y_px the nominal stage position of the tile's upper left pixel.
section_stack  `image/`: precomputed uint8 volume, chunks (1024, 1024, 1), so that one section is
               written without touching its neighbours; `mask/`, optional, same geometry, 1 = valid
               tissue; `sections/{z:06d}.json`: `{"z", "status": ok|flagged|failed|missing|blank,
               …figures}`; `transforms/{z:06d}.npz`, optional: how the section was made.
image_volume   precomputed uint8 image with its pyramid (or an external precomputed or HDF5 image).
mask           precomputed uint8 labels of the classes given in `properties["classes"]`.
subvolumes     `{z}_{y}_{x}.npz` of overlapping boxes with ids of their own; see segment.
segmentation   precomputed uint64 segmentation with its pyramid; 0 is background.
mesh_layer, skeleton_layer   folders inside a segmentation layer, as Neuroglancer reads them.
model          `model.json` (architecture, normalization) and `weights.npz`.
table          `table.json`: `{"columns": […], "rows": [[…], …]}`.
pictures       PNG files and `index.json`.
report         `report.json`: figures of an evaluation.
volume_files   a volume in another format (WEBKNOSSOS, HDF5, …): `properties` say which (`format`) and where (`uri`).
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from happyneurons.errors import NotFoundError, UserError
from happyneurons.store.documents import Store

ArtifactKind = Literal[
    "tile_set", "section_stack", "image_volume", "mask", "subvolumes", "segmentation",
    "mesh_layer", "skeleton_layer", "model", "table", "pictures", "report", "volume_files",
]  # fmt: skip


class Bounds(BaseModel):
    """A box of voxels, `minimum` inclusive, `maximum` exclusive, both (x, y, z)."""

    model_config = ConfigDict(frozen=True)
    minimum_xyz: tuple[int, int, int]
    maximum_xyz: tuple[int, int, int]

    @property
    def shape_zyx(self) -> tuple[int, int, int]:
        a, b = self.minimum_xyz, self.maximum_xyz
        return (b[2] - a[2], b[1] - a[1], b[0] - a[0])


class Artifact(BaseModel):
    """One output of a job, or external data. `digest` stands for its content in job keys."""

    model_config = ConfigDict(frozen=True)
    kind: ArtifactKind
    uri: str = Field(description="How to refer to it: STORE/jobs/KEY/manifest.json#OUTPUT, or an external URI")
    data_uri: str = Field(description="Where its bytes are (absolute URI of a folder or file)")
    digest: str = Field(description="sha256 over job key, output name, kind and task results")
    voxel_size_nm_xyz: tuple[float, float, float] | None = None
    bounds: Bounds | None = None
    properties: dict[str, Any] = Field(default_factory=dict)

    def store(self) -> Store:
        """The artifact's own folder as a store."""
        return Store(self.data_uri)


class Manifest(BaseModel):
    """What `jobs/KEY/manifest.json` holds: everything needed to trace and to reuse a result."""

    schema_version: Literal[1] = 1
    job_key: str
    stage: str
    stage_version: str
    params: dict[str, Any]
    inputs: dict[str, list[dict[str, str]]] = Field(description="name → [{uri, digest}]")
    outputs: dict[str, Artifact]
    metrics: dict[str, float] = Field(default_factory=dict)
    provenance: dict[str, Any]


def manifest_path(job_key: str) -> str:
    return f"jobs/{job_key}/manifest.json"


def artifact_uri(store: Store, job_key: str, output: str) -> str:
    return f"{store.url(manifest_path(job_key))}#{output}"


def load_manifest(store: Store, job_key: str) -> Manifest | None:
    """The published manifest of a job, or None while there is none."""
    document = store.find_json(manifest_path(job_key))
    return None if document is None else Manifest.model_validate(document)


def load_artifact(uri: str) -> Artifact:
    """Resolve an artifact URI, ours or external. Raises UserError if there is nothing usable."""
    if "/manifest.json#" not in uri:
        from happyneurons.store.external import external_artifact

        return external_artifact(uri)
    manifest, root, output = _published(uri)
    artifact = manifest.outputs[output]
    # A store may be mounted elsewhere than where it was written: what lies below it moves along.
    return artifact.model_copy(update={"uri": uri, "data_uri": f"{root}/artifacts/{manifest.job_key}/{output}"})


def manifest_of(uri: str) -> Manifest:
    """The manifest that an artifact of ours is published in. Raises UserError if there is none."""
    return _published(uri)[0]


def _published(uri: str) -> tuple[Manifest, str, str]:
    """(manifest, root of its store, output) that an artifact's URI names."""
    document, _, output = uri.partition("#")
    root, _, key = document.removesuffix("/manifest.json").rpartition("/jobs/")
    try:
        manifest = load_manifest(Store(root), key)
    except NotFoundError:
        manifest = None
    if manifest is None:
        raise UserError(f"artifact {uri}: its job has not published a result (yet)")
    if output not in manifest.outputs:
        raise UserError(f"artifact {uri}: no output {output!r}; there are {', '.join(sorted(manifest.outputs))}")
    return manifest, root, output
