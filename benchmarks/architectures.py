"""What ``qharness estimate`` knows of transformers' causal language models: ``python benchmarks/architectures.py``.

Takes the default configuration of each model type of MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, writes it as config.json, and
describes it from that file alone: all parameters, on the meta device, and what each layer caches. Types that are
encoders by default are configured as decoders (``is_decoder``), as their causal language models ask.

Prints a line for each type and then what docs/measurements/estimate-cpu.md records: how many are described, and the
others by reason. Takes up to a quarter of an hour; types named as arguments are described alone.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import transformers
from transformers import CONFIG_MAPPING, AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from harness.models.resolve import described

WHOLE = "parameters and cache"
WITHOUT_CACHE = "parameters, but no cache"
REASONS: Mapping[str, str] = {
    r"no cache that could be counted": f"{WITHOUT_CACHE}: its forward pass returns none",
    r"shapes from numbers|meta tensors": f"{WITHOUT_CACHE}: its forward pass asks for numbers",
    r"attribute 'num_hidden_layers'": f"{WITHOUT_CACHE}: a model of parts, which transformers' cache does not know",
    r"list index|broadcast|expected scalar type": f"{WITHOUT_CACHE}: its forward pass fails in transformers",
    r"requires the \w+ library": "not built: needs a package that is not installed",
    r"NoneType|1 positional|'k' must be int|text_encoder|Config' object|'full_attention'|contain Linear|language": (
        "its default configuration lacks sizes, parts or attention layers that published ones have"
    ),
}
"""Patterns of what transformers says, and the reason that it means. Whatever else it says is a reason of its own."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", help="model types; default: all")
    wanted = parser.parse_args().types or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore")
    found: dict[str, list[str]] = {}
    for kind in wanted:
        began = time.perf_counter()
        outcome, detail = _outcome(CONFIG_MAPPING[kind])
        found.setdefault(outcome, []).append(kind)
        print(f"{kind}: {detail} ({time.perf_counter() - began:.1f} s)", flush=True)
    print(f"\ntransformers {transformers.__version__}, {len(wanted)} types")
    for outcome, kinds in sorted(found.items(), key=lambda each: -len(each[1])):
        print(f"{len(kinds):4} {outcome}" + (f": {', '.join(kinds)}" if outcome != WHOLE else ""))


def _outcome(make: Callable[[], Any]) -> tuple[str, str]:
    """What is known of a type, by its reason if that is not all, and in detail."""
    try:
        answer = described(_from_file(make()))
    except Exception as error:  # noqa: BLE001 - whatever a configuration's class raises is the finding
        return _reason("not read", str(error) or type(error).__name__)
    if answer["unbuilt"]:
        return _reason("not built", answer["unbuilt"])
    if answer["uncounted"]:
        return _reason(WITHOUT_CACHE, answer["uncounted"])
    return WHOLE, f"{len(answer['shapes'])} parameters, {len(answer['caches'])} caches"


def _from_file(config: Any) -> Any:
    """A configuration as its own config.json gives it."""
    if getattr(config, "is_decoder", None) is False and not config.is_encoder_decoder:
        config.is_decoder = True
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        return AutoConfig.from_pretrained(Path(folder))


def _reason(stage: str, said: str) -> tuple[str, str]:
    first = said.strip().partition("\n")[0]
    known = next((reason for pattern, reason in REASONS.items() if re.search(pattern, said)), None)
    return known or f"{stage}: {first}", f"{stage}: {first}"


if __name__ == "__main__":
    main()
