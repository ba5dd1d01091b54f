"""A manifest says which image its job ran in."""

from __future__ import annotations

import pytest

from happyneurons.store.documents import Store
from happyneurons.worker.local import run_stage


def test_provenance_names_the_image(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"NAME": "montage", "VERSION": "1.2.3", "REVISION": "abc-dirty"}.items():
        monkeypatch.setenv(f"HPN_IMAGE_{name}", value)
    inside = run_stage(store, "sandbox", params={"tasks": 1})
    assert inside.provenance["image"] == {"name": "montage", "version": "1.2.3", "revision": "abc-dirty"}
    for name in ("NAME", "VERSION", "REVISION"):
        monkeypatch.delenv(f"HPN_IMAGE_{name}")
    outside = run_stage(store, "sandbox", params={"tasks": 2})
    assert outside.provenance["image"] == {}
