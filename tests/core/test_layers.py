"""Names of layers: the same to all who cut, count or place a model by them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import harness
from harness.core.layers import is_layer, layer_number, layer_of, name_from_layers


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.3.mlp.down_proj.weight", "model.layers.3"),
        ("layers.12.self_attn", "layers.12"),
        ("transformer.h.0", "transformer.h.0"),
        ("blk.7.ffn_down_exps.weight", "blk.7"),
        ("model.visual.blocks.1.attn.qkv.weight", "model.visual.blocks.1"),
        ("model.layers.2.mlp.experts.layers.5.weight", "model.layers.2"),
        ("model.embed_tokens.weight", None),
        ("model.layers", None),
        ("encoder_layers.0.weight", None),
        ("model.layers.first.weight", None),
    ],
)
def test_the_outermost_layer_is_found(name: str, layer: str | None) -> None:
    assert layer_of(name) == layer
    assert layer_number(name) == (None if layer is None else int(layer.rpartition(".")[2]))
    assert is_layer(name) == (name == layer)


def test_names_in_a_layer_are_alike_whatever_comes_before_it() -> None:
    names = ("model.layers.0.mlp", "model.language_model.layers.0.mlp", "layers.0.mlp")
    assert {name_from_layers(name) for name in names} == {"layers.0.mlp"}
    assert name_from_layers("lm_head") is None


def test_no_other_file_spells_how_layers_are_called() -> None:
    spelled = re.compile(r"layers\|h\|blocks")
    files = (path for path in Path(harness.__file__).parent.rglob("*.py") if spelled.search(path.read_text("utf-8")))
    assert [path.name for path in files] == ["layers.py"]
