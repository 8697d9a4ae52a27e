"""Perplexity protocols, one per file. A table never mixes figures of two protocols."""

from collections.abc import Mapping
from types import MappingProxyType

from harness.text.protocols.gptq import GPTQ
from harness.text.protocols.llama_cpp import LLAMA_CPP
from harness.text.protocols.lm_eval import LM_EVAL
from harness.text.protocols.preset import Preset
from harness.text.protocols.sliding import SLIDING

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {preset.name: preset for preset in (GPTQ, LM_EVAL, LLAMA_CPP, SLIDING)}
)
