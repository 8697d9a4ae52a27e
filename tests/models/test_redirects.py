"""A checkpoint that makes transformers read files that are not hashed, or code, is refused while planning."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from harness.errors import SourceError
from harness.models.sources import inspect
from harness.recipe import Model


def changed(tiny: Path, out: Path, **config: Any) -> Path:
    shutil.copytree(tiny, out)
    path = out / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **config}), encoding="utf-8")
    return out


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"transformers_weights": "other.safetensors"}, "names other weights"),
        ({"text_config": {"transformers_weights": "other.safetensors"}}, "names other weights"),
        ({"_attn_implementation": "someone/kernel"}, "attention code on a hub"),
        ({"thinker_config": {"text_config": {"_attn_implementation": "a/kernel"}}}, "attention code on a hub"),
        ({"attn_implementation": {"text_config": "someone/kernel@main"}}, "attention code on a hub"),
    ],
)
def test_a_configuration_that_names_other_files_is_refused(
    tiny: Path, tmp_path: Path, config: dict[str, Any], reason: str
) -> None:
    with pytest.raises(SourceError, match=reason):
        inspect(Model(id=str(changed(tiny, tmp_path / "m", **config))), tmp_path)


def test_an_adapter_in_the_folder_is_refused(tiny: Path, tmp_path: Path) -> None:
    folder = changed(tiny, tmp_path / "m")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/elsewhere"}), encoding="utf-8")
    with pytest.raises(SourceError, match="contains an adapter"):
        inspect(Model(id=str(folder)), tmp_path)


def test_usual_settings_are_accepted(tiny: Path, tmp_path: Path) -> None:
    folder = changed(tiny, tmp_path / "m", _attn_implementation="sdpa", transformers_weights=None)
    assert inspect(Model(id=str(folder)), tmp_path).matrices
