"""AutoAWQ in the stack that it needs, and its checkpoints in this environment."""

from __future__ import annotations

import json
import math
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from kernel_families import families
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

import harness
from harness.api.plan import plan
from harness.core.engine import LoadRequest
from harness.core.method import CalibrationSet
from harness.engines.transformers.engine import TRANSFORMERS
from harness.models import legacy
from harness.plugins import method
from harness.recipe import load_recipe
from harness.stacks import Stacks
from harness.stacks.build import check

pytestmark = pytest.mark.heavy

PROBE = torch.arange(2, 34).unsqueeze(0)
KEPT = "model.layers.1.mlp.down_proj"
VARIANTS = {"g64": {"group_size": 64}, "g16": {"group_size": 16}, "plain": {"group_size": 64, "clip": False}}
SCRIPT = """
import json, sys
from pathlib import Path
import torch
from awq.quantize import quantizer
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
from harness.core.method import CalibrationSet, QuantizeJob
from harness.methods.autoawq.autoawq import AUTOAWQ

told = json.loads(Path(sys.argv[1]).read_text())
probe, text = torch.tensor(told["probe"]), torch.tensor(told["tokens"][:8])
logits, seen, original = {}, [], quantizer.get_calib_dataset

def spy(*arguments, **options):
    seen.append(original(*arguments, **options))
    return seen[-1]

quantizer.get_calib_dataset = spy
with torch.inference_mode():
    for name in ("raw", "view"):
        model = AutoModelForCausalLM.from_pretrained(told[name], torch_dtype="float32")
        logits[name], logits[name + " on text"] = model(probe).logits[0], model(text).logits
attentions = {}
for name, params in {**told["variants"], "eager": told["variants"]["g64"]}.items():
    texts = CalibrationSet(told["tokens"], told["lengths"], "")
    out = Path(told["out"]) / name
    out.mkdir()
    model = AUTOAWQ.quantize(QuantizeJob(AUTOAWQ.params(**params), Path(told["view"]), out, "cpu", "float32", 0,
                                         lambda: None, texts, untouched=tuple(told["untouched"]),
                                         attention="eager" if name == "eager" else None))
    attentions[name] = model.config._attn_implementation
    with torch.inference_mode():
        logits[name], logits[name + " on text"] = model(probe).logits[0], model(text).logits
    logits[name + " rows"] = torch.cat(seen.pop())
save_file({name: value.contiguous() for name, value in logits.items()}, Path(told["out"]) / "seen.safetensors")
(Path(told["out"]) / "attentions.json").write_text(json.dumps(attentions))
"""


@dataclass(frozen=True)
class Stack:
    """What the other environment made: logits (32, vocabulary) and calibration rows by name, a folder per variant."""

    source: Path
    out: Path
    seen: dict[str, torch.Tensor]

    def logits(self, name: str, **options: Any) -> torch.Tensor:
        request = LoadRequest(self.out / name, "float32", "cpu", **options)
        with torch.inference_mode():
            return TRANSFORMERS.load(request, TRANSFORMERS.params()).logits(PROBE)[0].float()


@pytest.fixture(scope="module")
def autoawq_stacks(stacks_with: Callable[[str], Stacks]) -> Stacks:
    """Stacks with the real AutoAWQ."""
    return stacks_with("autoawq")


@pytest.fixture(scope="module")
def stack(
    tiny: Path, calibration: CalibrationSet, tmp_path_factory: pytest.TempPathFactory, autoawq_stacks: Stacks
) -> Stack:
    """The tiny model with a rotary base that transformers 4 would not guess, quantized there in three ways."""
    python = str(autoawq_stacks.find("autoawq").python)
    pytest.importorskip("gptqmodel")
    folder = tmp_path_factory.mktemp("autoawq")
    source, view, out = folder / "source", folder / "view", folder / "out"
    config = AutoConfig.from_pretrained(tiny)
    config.rope_parameters = {"rope_type": "default", "rope_theta": 500000.0}
    AutoModelForCausalLM.from_pretrained(tiny, config=config, dtype="float32").save_pretrained(source)
    legacy.view(source, view)
    out.mkdir()
    (folder / "path").mkdir()
    (folder / "path" / "harness").symlink_to(Path(harness.__file__).parent)
    told = {
        "raw": str(source),
        "view": str(view),
        "out": str(out),
        "variants": VARIANTS,
        "tokens": calibration.tokens,
        "lengths": calibration.lengths,
        "untouched": ["lm_head", KEPT],
        "probe": PROBE.tolist(),
    }
    (folder / "told.json").write_text(json.dumps(told), encoding="utf-8")
    (folder / "script.py").write_text(SCRIPT, encoding="utf-8")
    done = subprocess.run(
        [python, folder / "script.py", folder / "told.json"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder / "path"), "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name in VARIANTS:
        legacy.restore(source, out / name)
    return Stack(source, out, load_file(out / "seen.safetensors"))


def plain(stack: Stack) -> torch.Tensor:
    with torch.inference_mode():
        return AutoModelForCausalLM.from_pretrained(stack.source, dtype="float32")(PROBE).logits[0]


def kl(base: torch.Tensor, other: torch.Tensor) -> float:
    base, other = base.double().log_softmax(-1), other.double().log_softmax(-1)
    return float((base.exp() * (base - other)).sum(-1).mean())


def test_transformers_4_reads_the_view_rightly_and_the_folder_itself_wrongly(stack: Stack) -> None:
    expected = plain(stack)
    assert (stack.seen["view"] - expected).abs().max() < 1e-4
    assert (stack.seen["raw"] - expected).abs().max() > 0.1


@pytest.mark.parametrize("name", VARIANTS)
def test_a_reload_is_what_the_library_quantized(stack: Stack, name: str) -> None:
    in_memory = stack.seen[name]
    loaded = stack.logits(name, read=method("autoawq").read)
    assert (in_memory - loaded).abs().max() < 1e-3 * in_memory.abs().max()


def test_it_calibrates_with_the_recipes_attention(stack: Stack) -> None:
    """The masks with which it calls single layers are those of this attention: almost all codes stay the same."""
    attentions = json.loads((stack.out / "attentions.json").read_text(encoding="utf-8"))
    assert attentions == dict.fromkeys(VARIANTS, "sdpa") | {"eager": "eager"}
    eager, chosen = (load_file(stack.out / name / "model.safetensors") for name in ("eager", "g64"))
    codes = [name for name in chosen if name.endswith("qweight")]
    alike = [(eager[name] == chosen[name]).float().mean().item() for name in codes]
    assert min(alike) > 0.9


def test_smaller_groups_diverge_less(stack: Stack) -> None:
    """On text: on the probe's run of ids, which no text holds, it is the other way round."""
    base = stack.seen["view on text"]
    fine, coarse, unclipped = (kl(base, stack.seen[f"{name} on text"]) for name in ("g16", "g64", "plain"))
    assert 0 < fine < coarse < 0.1
    assert unclipped != coarse


def test_every_row_of_calibration_text_is_used_as_it_is(stack: Stack, calibration: CalibrationSet) -> None:
    for name in VARIANTS:
        assert stack.seen[f"{name} rows"].tolist() == [list(row) for row in calibration.tokens]


@pytest.mark.parametrize("name", VARIANTS)
def test_what_is_stored(stack: Stack, name: str) -> None:
    chosen = method("autoawq")
    tensors = load_file(stack.out / name / "model.safetensors")
    layers = [key.removesuffix(".qweight") for key in tensors if key.endswith(".qweight")]
    assert len(layers) == 27
    assert f"{KEPT}.weight" in tensors
    assert KEPT not in layers
    stored = sum(tensors[f"{layer}.{part}"].nbytes for layer in layers for part in ("qweight", "qzeros", "scales"))
    weights = sum(math.prod(tensors[f"{layer}.qweight"].shape) * 8 for layer in layers)
    promised = chosen.bits_per_weight(chosen.params.model_validate(VARIANTS[name]), 16, 64)
    assert 8 * stored / weights == pytest.approx(promised, rel=0.02)


def test_kernels_and_untouched_modules_of_a_reload(stack: Stack) -> None:
    model = TRANSFORMERS.load(
        LoadRequest(stack.out / "g64", "float32", "cpu", read=method("autoawq").read), TRANSFORMERS.params()
    )
    assert families(model) == {"dequantize": 27, "plain": 1}
    quantized = {entry.name for entry in model.weight_ledger() if entry.quantized}
    assert len(quantized) == 27
    assert f"{KEPT}.weight" not in quantized


def test_another_stack_quantizes_and_the_main_one_measures(autoawq_stacks: Stacks, sweeps, tiny: Path) -> None:
    """The real AutoAWQ under transformers 4.51, its checkpoint read and measured by transformers 5."""
    for package in ("gptqmodel", "optimum"):
        pytest.importorskip(package)
    assert check(autoawq_stacks.find("autoawq")) == []
    content = {
        "models": [{"id": str(tiny), "dtype": "float32", "label": "tiny"}],
        "methods": ["none", {"autoawq": {"group_size": 32}}],
        "calibration": {"samples": 16, "length": 64},
        "measure": {"perplexity": {"context": 64, "windows": 8}, "divergence": {}, "memory": {}},
        "threads": 1,
    }
    planned = plan(load_recipe(sweeps.recipe(content)), stacks=autoawq_stacks)
    records = sweeps.make(planned, stacks=autoawq_stacks)
    ended = {record.spec.title: record for record in records}
    assert {record.status for record in records} == {"ok"}, [r.outcome.failure for r in records]
    quantize, quality = ended["quantize autoawq group_size=32"], ended["quality autoawq group_size=32"]
    assert quantize.spec.stack == "autoawq"
    assert quantize.outcome.before.software["transformers"].startswith("4.51")
    assert quantize.outcome.before.software["autoawq"] == "0.2.9"
    assert quantize.outcome.fact("calibration_consumed").value.startswith("16 of 16 samples")
    assert quantize.outcome.fact("source_in_stack").arguments["stack"] == "autoawq"
    assert quality.outcome.before.software["transformers"].startswith("5.")
    assert "AwqTorchLinear" in quality.outcome.fact("layers").value
    kl = quality.find("kl").values
    assert 0 < sum(kl) / len(kl) < 0.2
    assert quality.find("coverage").values == (1.0,)
