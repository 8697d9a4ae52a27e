"""What ``qharness estimate`` knows of transformers' causal language models: ``python benchmarks/architectures.py``.

Takes the default configuration of each model type of MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, writes it as config.json, and
describes it from that file alone: all parameters, on the meta device, and what each layer caches. Types that are
encoders by default are configured as decoders (``is_decoder``), as their causal language models ask. Where a default
configuration leaves out what the model cannot be built or run without, COMPLETED has it.

Prints a line for each type and then what docs/measurements/estimate-cpu.md records: how many are described, and the
others by reason (EXCEPTIONS). Takes up to a quarter of an hour; types named as arguments are described alone. Ends with
exit code 1 if a type is not described that is no exception, or an exception is.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import transformers
from transformers import CONFIG_MAPPING, AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from harness.core.model import LayerCache
from harness.models.resolve import described

COMPLETED: Mapping[str, Mapping[str, Any]] = {
    "bamba": {"attn_layer_indices": [9, 18, 27]},
    "big_bird": {"attention_type": "original_full"},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "dbrx": {"attn_config": {"kv_n_heads": 8, "clip_qkv": 8, "rope_theta": 5e5}},
    "deepseek_v2": {"num_experts_per_tok": 6},
    "dots1": {"n_routed_experts": 128, "n_shared_experts": 2, "num_experts_per_tok": 6},
    "emu3": {"vocabulary_map": {"<image>": 151851}},
    "granitemoehybrid": {"layer_types": ["mamba", "mamba", "mamba", "attention"] * 8},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention", "conv"] * 8},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8},
}
"""What default configurations leave out, as published ones have it."""
NO_TEXT = "writes no text by itself"
BREAKS = "its forward pass with a cache, or in bfloat16, fails in transformers"
NUMBERS = "its forward pass asks for numbers, which a model without weights lacks"
INDEXER = "its default configuration lacks the sizes of its indexer, which asks for numbers"
EXCEPTIONS: Mapping[str, str] = {
    "blenderbot": BREAKS,
    "blt": "a model of several parts, for which transformers' cache has no number of layers",
    "cpmant": BREAKS,
    "gemma3n": "transformers builds its vision part with timm, which is not installed",
    "gemma4_assistant": NO_TEXT,
    "gemma4_unified_assistant": NO_TEXT,
    "git": BREAKS,
    "musicgen": NO_TEXT,
    "musicgen_melody": NO_TEXT,
    "qwen4_exp": INDEXER,
    "qwen4_exp_text": INDEXER,
    "reformer": NUMBERS,
    "xlnet": BREAKS,
    "xmod": NUMBERS,
}
"""The types that are not described whole, and why."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", help="model types; default: all")
    wanted = parser.parse_args().types or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore")
    found: dict[str, list[str]] = {}
    for kind in wanted:
        began = time.perf_counter()
        lacking, detail = outcome(kind)
        found.setdefault(EXCEPTIONS.get(kind, lacking) if lacking else "", []).append(kind)
        print(f"{kind}: {detail} ({time.perf_counter() - began:.1f} s)", flush=True)
    print(f"\ntransformers {transformers.__version__}, {len(wanted)} types")
    whole = found.pop("", [])
    print(f"{len(whole):4} parameters and cache")
    for reason, kinds in sorted(found.items(), key=lambda each: -len(each[1])):
        print(f"{len(kinds):4} {reason}: {', '.join(kinds)}")
    return int(set(wanted) - set(whole) != EXCEPTIONS.keys() & set(wanted))


def outcome(kind: str) -> tuple[str | None, str]:
    """What is not known of a type, None if all is, and what is known in detail."""
    try:
        answer = described(_from_file(lambda: CONFIG_MAPPING[kind](**COMPLETED.get(kind, {}))))
    except Exception as error:  # noqa: BLE001 - whatever a configuration's class raises is the finding
        return "not read", f"not read: {str(error).strip().partition(chr(10))[0] or type(error).__name__}"
    for lacking, why in (("not built", answer["unbuilt"]), ("parameters, but no cache", answer["uncounted"])):
        if why:
            return lacking, f"{lacking}: {why}"
    kept = [LayerCache(*each) for each in answer["caches"]]
    if kept and not any(each.numbers(100) + each.float32_state for each in kept):
        return "parameters, but no cache", "layers whose caches are empty"
    return None, f"{len(answer['shapes'])} parameters, {len(kept)} caches"


def _from_file(make: Callable[[], Any]) -> Any:
    """A configuration as its own config.json gives it."""
    config = make()
    if getattr(config, "is_decoder", None) is False and not config.is_encoder_decoder:
        config.is_decoder = True
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        return AutoConfig.from_pretrained(Path(folder))


if __name__ == "__main__":
    sys.exit(main())
