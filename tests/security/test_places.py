"""Where data may be read: what requests name, and what ranks open."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from happyneurons.errors import UserError
from happyneurons.jobs.locations import misplaced, text_format
from happyneurons.stages import load_stage, loadable_stages
from happyneurons.stages.ingest.check import read_bytes
from happyneurons.store.documents import Store, local_path
from happyneurons.store.external import external_artifact
from happyneurons.store.roots import VARIABLE, Roots, secret_in
from happyneurons.store.volumes import open_volume


def test_every_text_parameter_says_whether_it_is_a_place() -> None:
    """A parameter without `format` is asked only where it looks like a path: a bare name would pass."""
    plain = set()
    for stage in loadable_stages():
        if not stage.__module__.startswith("happyneurons.stages."):
            continue  # the tests' own
        schema = stage.Params.model_json_schema()
        for name, field in schema.get("properties", {}).items():
            kinds = [field, *field.get("anyOf", ())]
            text = any(k.get("type") == "string" and "enum" not in k and "const" not in k for k in kinds)
            if text and not text_format(stage, name):
                plain.add(f"{stage.name}.{name}")
    assert plain == set(), "say format uri-reference, regex or name (json_schema_extra)"


def test_allowed_places(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "way").symlink_to(tmp_path / "in")
    roots = Roots([str(tmp_path / "in"), "s3://lab/raw", "gs://public"])
    for uri in (
        f"{tmp_path}/in", f"{tmp_path}/in/a/../b", f"file://{tmp_path}/way/x", f"h5://{tmp_path}/in/v.h5?main",
        f"ckpt://{tmp_path}/in/model.ckpt-5", f"precomputed://file://{tmp_path}/in/v", "s3://lab/raw", "s3://lab/raw/x",
        "precomputed://gs://public/fib25", f"file://{tmp_path}/in/jobs/k/manifest.json#stack",
    ):  # fmt: skip
        assert roots.problem(uri) is None, uri
    for uri in ("s3://lab/rawer", "s3://lab", "gs://publicer", "S3://lab/raw", "FILE:///etc", "", "s3://lab/raw/a?b"):
        assert roots.problem(uri), uri


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("s3://key:secret@bucket/x", True), ("https://user@host/x", True), ("see s3://a:b@c for it", True),
        ("s3://b/x?X-Amz-Signature=1", True), ("s3://b/mail@host", False), ("alice@lab.example", False),
        ("h5:///a/b@c.h5?d", False), ("x" * 200_000, False), ("://" * 50_000, False),
    ],
)  # fmt: skip
def test_secrets_in_texts(text: str, secret: bool) -> None:
    assert secret_in(text) is secret


def test_nested_values_and_unknown_parameters_are_asked_too(tmp_path: Path) -> None:
    roots = Roots([str(tmp_path)])
    params = {"pattern": "../{z}.png", "unknown": {"deep": ["/etc/passwd", "name"]}, "source": "tiles"}
    found = dict(misplaced(load_stage("ingest"), {"x": ["/etc"]}, params, roots))
    assert set(found) == {"inputs.x", "params.unknown.deep[0]", "params.source"}


def test_what_is_written_goes_to_the_store_only(tmp_path: Path) -> None:
    roots = Roots([str(tmp_path / "store"), str(tmp_path / "raw")])

    def refused(**params: str) -> set[str]:
        return {path for path, _ in misplaced(load_stage("convert"), {}, params, roots)}

    store, raw = str(tmp_path / "store/a"), str(tmp_path / "raw/b")
    assert refused(source=raw, target=store) == refused(source=store, target=store) == set()
    assert refused(source=store, target=raw) == refused(source=store, target="b") == {"params.target"}
    assert refused(source="/etc", target=store) == {"params.source"}


def test_ranks_ask_again_whatever_they_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists, sections and links inside of data can point anywhere, and may be changed after the request."""
    inside, outside = tmp_path / "in", tmp_path / "out"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "tile.tif").write_bytes(b"x")
        (folder / "info").write_text("{}")
    (inside / "link.tif").symlink_to(outside / "tile.tif")
    monkeypatch.setenv(VARIABLE, json.dumps([inside.as_uri()]))
    assert read_bytes(inside / "tile.tif") == b"x"
    assert Store(inside.as_uri()).get("info") == b"{}"
    for opens in (
        lambda: read_bytes(inside / "link.tif"), lambda: read_bytes(outside / "tile.tif"),
        lambda: local_path(str(outside)), lambda: Store(outside.as_uri()), lambda: Store("s3://elsewhere/x"),
        lambda: external_artifact(str(outside)),
        lambda: open_volume(f"h5://{outside}/x.h5?d"), lambda: external_artifact(f"ckpt://{outside}/m"),
    ):  # fmt: skip
        with pytest.raises(UserError, match="may not be read here"):
            opens()
