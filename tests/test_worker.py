"""The worker: what it predicts with, and what it does where a champion cannot be had."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from deploy import worker
from featurestore import lake
from streams import control
from trainer import predictor, registry, texts


@pytest.mark.parametrize("how", ["gone", "changed", "of another nextclick"])
def test_champion_that_cannot_be_had_waits_for_news(tmp_path: Path, how: str) -> None:
    """The model in use goes on, and the worker too; it is tried again where it is named anew or its files change."""
    out = registry.Registry(tmp_path)
    version = out.publish(lambda d: (d / "config.json").write_text('{"encoder": "x"}') and None, {"n": 1})
    if how == "gone":
        shutil.rmtree(out.path(version))
    if how == "changed":
        (out.path(version) / "config.json").write_text("{}")
    log = cast(Any, SimpleNamespace(state=control.ControlState(champion=version)))
    models = worker.Models(
        shared=tmp_path, texts_=texts.Texts(None, tmp_path, "w"), lake_=lake.Lake(tmp_path, "w"), log_=log
    )
    assert models.wanted() == version
    assert models.tried(version) is None
    assert models.wanted() is None
    log.state = control.fold(
        log.state, control.Entry(id="2", kind="model.promote", at_ms=1, by="ann", data={"version": version})
    )
    assert models.wanted() == version
    assert models.tried(version) is None
    assert models.wanted() is None
    (out.root / version).mkdir(exist_ok=True)
    (out.root / version / "late.json").write_text("{}")
    assert models.wanted() == version


def test_worker_begins_with_the_champion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not first learn the whole lake anew, which takes the longer the older the shop is."""
    log = cast(Any, SimpleNamespace(state=control.ControlState(champion="v")))
    vectors = texts.Texts(None, tmp_path, "w")
    models = worker.Models(shared=tmp_path, texts_=vectors, lake_=lake.Lake(tmp_path, "w"), log_=log)
    champion = predictor.Predictor.cold(vectors)
    champion.version = "v"
    monkeypatch.setattr(models, "tried", {"v": champion}.get)
    monkeypatch.setattr(models, "unseen", lambda model: pytest.fail("the lake was read"))
    models.begin()
    assert models.current is champion
    assert models.wanted() is None
