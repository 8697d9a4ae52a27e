"""A prepared checkpoint whose tokenizer does not come back as it was saved is invalid, and no run starts from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from run_specs import run_spec

from harness.core.model import MethodRef
from harness.execution import import_guard, worker
from harness.execution.context import Context
from harness.execution.jobs import prepare
from harness.models.sources import inspect
from harness.recipe import Model
from harness.storage.cache import Cache

pytestmark = pytest.mark.heavy

NONE = MethodRef("none", 1, {}, "none", "none")


def test_a_tokenizer_that_comes_back_otherwise_makes_the_run_invalid(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = prepare.copy_tokenizer

    def spoil(source: Path, out: Path, code: bool = False) -> None:
        copy(source, out, code)
        content = json.loads((out / "tokenizer.json").read_text())
        content["model"]["merges"] = content["model"]["merges"][:100]
        (out / "tokenizer.json").write_text(json.dumps(content))

    monkeypatch.setattr(import_guard, "skip_unused_imports", lambda _: None)  # it would hold for all tests that follow
    model = inspect(Model(id=str(tiny), degrid=0), tmp_path).ref
    spec = run_spec("prepare", "r", model)
    cache = Cache(tmp_path)
    assert worker._run(Context(spec, cache, lambda _: None), (), "whole", lambda: None)[0].status == "ok"
    for name in ("tokenizer.json", "tokenizer_config.json"):  # transformers drops "legacy" where it writes the latter
        (kept,) = (tmp_path / "prepare").rglob(name)
        assert kept.read_bytes() == (tiny / name).read_bytes()
    monkeypatch.setattr(prepare, "copy_tokenizer", spoil)
    cache = Cache(tmp_path / "other")
    outcome, _ = worker._run(Context(spec, cache, lambda _: None), (), "token", lambda: None)
    assert outcome.status == "invalid"
    assert outcome.failure is not None
    told = "the saved tokenizer differs from the one in memory: a probe text becomes other tokens"
    assert outcome.failure.message == told
    assert cache.outcome(spec) is None
    assert not list((tmp_path / "other").rglob("*.safetensors"))
