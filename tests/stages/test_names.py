"""Which stages an installation offers: all of them, or those that its image is for."""

from __future__ import annotations

import pytest

from happyneurons.errors import UserError
from happyneurons.stages import load_stage, loadable_stages, stage_names


def test_an_image_offers_its_stages_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"montage", "segment", "sandbox"} <= set(stage_names())
    monkeypatch.setenv("HPN_STAGES", " segment,ffn-train,")
    assert stage_names() == ["ffn-train", "segment"]
    assert [s.name for s in loadable_stages()] == ["ffn-train", "segment"]
    with pytest.raises(UserError, match="no stage named 'montage'; there are ffn-train, segment"):
        load_stage("montage")


def test_nothing_set_is_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = stage_names()
    monkeypatch.setenv("HPN_STAGES", "")
    assert stage_names() == everything


def test_a_name_that_is_no_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPN_STAGES", "montage,montages")
    with pytest.raises(UserError, match="HPN_STAGES names montages; there are agglomerate, align"):
        stage_names()
