"""neural-compressor on the tiny model: reloads, what is stored, what is left alone, and that all rows are seen."""

from __future__ import annotations

import pytest
import torch
from kernel_families import families
from transformers import AutoConfig, AutoModelForCausalLM

from harness import plugins as registry
from harness.methods.inc.inc import own_arguments
from harness.models import stored
from harness.models.headers import read_directory

pytestmark = pytest.mark.heavy

KEPT = "model.layers.1.mlp.down_proj"


def checkpoint_bits(tiny, made) -> float:
    """Bits of a quantized weight in the checkpoint."""
    layers = stored.layers(read_directory(tiny).shapes, made.folder)
    layers = [layer for layer in layers if layer.name != KEPT]
    return sum(8 * (x.value_bytes + x.scale_bytes) for x in layers) / sum(x.parameters for x in layers)


def expected_bits(tiny, made) -> float:
    shapes = read_directory(tiny).shapes
    names = [layer.name for layer in stored.layers(shapes, made.folder) if layer.name != KEPT]
    sizes = [shapes[f"{name}.weight"] for name in names]
    bits = sum(rows * width * made.method.bits_per_weight(made.params, 32.0, width) for rows, width in sizes)
    bits += sum(8 * made.method.beside(made.params, 32.0, shape).disk for shape in sizes)
    return bits / sum(rows * width for rows, width in sizes)


@pytest.mark.parametrize(
    ("name", "bits", "group_size", "symmetric", "least_kl", "most_kl"),
    [
        pytest.param("inc-rtn", 8, "channel", True, 1e-7, 1e-3, marks=pytest.mark.thorough),
        ("inc-rtn", 4, 32, False, 1e-3, 0.05),
        pytest.param("inc-rtn", 3, 32, True, 0.03, 0.3, marks=pytest.mark.thorough),
        pytest.param("inc-rtn", 2, 32, True, 0.3, 5, marks=pytest.mark.thorough),
        ("inc-gptq", 4, 32, True, 1e-3, 0.05),
        ("inc-awq", 4, 32, False, 1e-3, 0.05),
    ],
)
def test_a_reload_is_what_was_in_memory(
    make, tiny, tmp_path, monkeypatch, name: str, bits: int, group_size: object, symmetric: bool, least_kl, most_kl
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    made = make(name, bits=bits, group_size=group_size, symmetric=symmetric, untouched=("lm_head", KEPT))
    assert made.reload_difference < 1e-5
    assert least_kl < made.kl < most_kl
    dense = {"INCWeightOnlyLinear of Tensor": 27}  # it keeps one since its first product
    scaled = {"MulLinear of Tensor": 27} if name == "inc-awq" else {}
    assert made.model.kernels() == {**dense, **scaled, "Linear": 1}
    assert families(made.model) == {"plain": 28}
    quantized = [entry for entry in made.model.weight_ledger() if entry.quantized]
    assert len(quantized) == 27
    assert not any(KEPT in entry.name for entry in quantized)
    assert checkpoint_bits(tiny, made) == pytest.approx(expected_bits(tiny, made), rel=0.02)
    assert not list(here.iterdir())


def test_what_runs_is_dense_beside_the_codes(make) -> None:
    made = make("inc-rtn")
    stored_bytes = sum(entry.value_bytes + entry.scale_bytes for entry in made.model.weight_ledger())
    dense = sum(4 * entry.parameters for entry in made.model.weight_ledger() if entry.quantized)
    assert made.model.running_bytes() >= stored_bytes + dense


def test_gptq_sees_every_row(make, monkeypatch) -> None:
    from neural_compressor.torch.algorithms.weight_only.gptq import RAWGPTQuantizer

    seen = []
    execute = RAWGPTQuantizer.execute_quantization

    def count(self, *given):
        seen.append(self.cache_key_arguments["batch_num"])
        return execute(self, *given)

    monkeypatch.setattr(RAWGPTQuantizer, "execute_quantization", count)
    gptq = make("inc-gptq", group_size=32)
    assert seen == [16]
    assert registry.method("inc-gptq").calibrated(gptq.params)


@pytest.mark.parametrize("kind", ["gemma3_text", "gpt_oss"])
def test_each_layer_is_replayed_with_the_mask_and_the_rotary_embedding_of_its_kind(kind: str) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind,
        **{"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
        **{"num_key_value_heads": 2, "head_dim": 16, "num_local_experts": 2, "num_experts_per_tok": 1},
        **{"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
        **{"vocab_size": 64, "pad_token_id": 0},
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    rows = [torch.arange(1, 17)[None], torch.arange(1, 25)[None]]
    given: list[dict] = []
    inputs: list[torch.Tensor] = []
    outputs: list[torch.Tensor] = []

    def look(layer, positional, options):
        given.append(options)
        inputs.append(positional[0] if positional else options["hidden_states"])

    first, second = model.model.layers
    handles = [layer.register_forward_pre_hook(look, with_kwargs=True) for layer in (first, second)]
    handles.append(second.register_forward_hook(lambda layer, _, output: outputs.append(output)))
    with torch.no_grad():
        for row in rows:
            model(input_ids=row, use_cache=False)
        for handle in handles:
            handle.remove()
        with own_arguments(model, rows):
            for number, expected in enumerate(outputs):
                of_first = {name: given[2 * number].get(name) for name in ("attention_mask", "position_embeddings")}
                assert torch.equal(second(inputs[2 * number + 1], **of_first), expected)
        assert not torch.equal(second(inputs[-1], **of_first), outputs[-1])
