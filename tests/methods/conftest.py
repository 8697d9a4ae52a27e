"""Quantizes the tiny model by a method in this process, and loads the result as the engine would."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from in_memory import quantized

from harness import plugins as registry
from harness.core.capability import Logits
from harness.core.engine import LoadRequest
from harness.core.format import Codes
from harness.core.method import CalibrationSet, Method, QuantizeJob, Setting
from harness.execution.local import local_site
from harness.models.headers import read_directory
from harness.models.published import codes, quantization_config
from harness.models.scope import in_decoder

if TYPE_CHECKING:
    import torch

SAMPLES, LENGTH = 16, 64


@dataclass(frozen=True)
class Made:
    """A variant: its logits (32, vocabulary) as quantized in memory (None where it quantizes on load) and as loaded."""

    method: Method[Any]
    params: Any
    folder: Path
    in_memory: torch.Tensor | None
    model: Logits
    loaded: torch.Tensor
    plain: torch.Tensor
    facts: dict[str, Any]

    @property
    def reload_difference(self) -> float:
        """Largest difference of logits between memory and reload, over the largest logit."""
        assert self.in_memory is not None
        return float((self.in_memory - self.loaded).abs().max() / self.in_memory.abs().max())

    @property
    def kl(self) -> float:
        """Mean KL(unquantized ‖ loaded) in nats per token of the probe."""
        base, other = self.plain.double().log_softmax(-1), self.loaded.double().log_softmax(-1)
        return float((base.exp() * (base - other)).sum(-1).mean())

    @property
    def linear_bits(self) -> float:
        """Bits of a decoder weight as it lies in memory after loading, scales included."""
        entries = [entry for entry in self.model.weight_ledger() if entry.role == "linear"]
        stored = sum(entry.value_bytes + entry.scale_bytes for entry in entries)
        return 8 * stored / sum(entry.parameters for entry in entries)


@pytest.fixture(scope="session")
def calibration(tiny: Path) -> CalibrationSet:
    """16 rows of 64 tokens of the harness's own calibration text."""
    from transformers import AutoTokenizer

    text = (Path(registry.__file__).parent / "text" / "data" / "demo_calibration.txt").read_text(encoding="utf-8")
    ids = AutoTokenizer.from_pretrained(tiny)(text, verbose=False)["input_ids"]
    rows = [ids[i * LENGTH : (i + 1) * LENGTH] for i in range(SAMPLES)]
    return CalibrationSet(rows, [LENGTH] * SAMPLES, hashlib.sha256(json.dumps(rows).encode()).hexdigest())


@pytest.fixture
def make(tiny: Path, tmp_path: Path, calibration: CalibrationSet, frozen_heap: None) -> Callable[..., Made]:
    """``make("gptq", bits=4, group_size=32)``; skips where a package that the method names is not installed."""
    import torch
    from transformers import AutoTokenizer

    from harness.engines.transformers.engine import TRANSFORMERS

    probe = torch.arange(2, 34).unsqueeze(0)

    def run(name: str, untouched: tuple[str, ...] = ("lm_head",), dtype: str = "float32", **given: Any) -> Made:
        chosen = registry.method(name)
        lacking = registry.missing(chosen, local_site())
        if lacking:
            pytest.skip(lacking)
        params = chosen.params.model_validate(given)
        if chosen.enable is not None:
            chosen.enable()
        with torch.inference_mode():
            plain = _load(tiny, dtype)(input_ids=probe).logits[0].float()
        facts: dict[str, Any] = {}
        in_memory, source, config = None, tiny, None
        if chosen.quantize is not None:
            names = [n.removesuffix(".weight") for n, s in read_directory(tiny).shapes.items() if in_decoder(n, len(s))]
            job = QuantizeJob(
                params,
                tiny,
                tmp_path,
                "cpu",
                dtype,
                0,
                lambda: _load(tiny, dtype),
                calibration if chosen.calibrated(params) else None,
                scope=tuple(n for n in names if n not in untouched),
                untouched=untouched,
                note=facts.__setitem__,
            )
            torch.manual_seed(0)
            in_memory = quantized(chosen, job, lambda model: model(input_ids=probe).logits[0].float())
            source = tmp_path
            check_codes(chosen, params, tmp_path)
            AutoTokenizer.from_pretrained(tiny).save_pretrained(tmp_path)
        elif chosen.load_config is not None:
            config = chosen.load_config(params, Setting(dtype, "cpu", untouched))
        model = TRANSFORMERS.load(
            LoadRequest(source, dtype, "cpu", quantization=config, read=chosen.read), TRANSFORMERS.params()
        )
        with torch.inference_mode():
            loaded = model.logits(probe)[0].float()
        return Made(chosen, params, tmp_path, in_memory, model, loaded, plain, facts)

    return run


def check_codes(chosen: Method[Any], params: Any, folder: Path) -> None:
    """What the library wrote is what the method declares, as far as the checkpoint's configuration says."""
    config = quantization_config(folder) if (folder / "config.json").exists() else {}
    if config and chosen.codes is not None and chosen.stores_codes(params):
        declared = chosen.codes(params)
        assert codes(config) in (declared, Codes(declared.quant_method))


def _load(folder: Path, dtype: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
