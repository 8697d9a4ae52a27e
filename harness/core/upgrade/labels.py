"""Schema 1 kept labels and facts as sentences. This is the only place where prose is parsed.

The patterns match the sentences of schema 1; they do not change when a sentence is reworded. A sentence that matches
none of them becomes a label with the code ``other``, or a ``noted`` fact, and is shown unchanged.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

Raw = dict[str, Any]
Read = Callable[[str], object]
"""Parses the text of one argument."""


def _percent(text: str) -> float:
    return float(Decimal(text) / 100)


def _grouped(text: str) -> int:
    return int(text.replace(",", ""))


def _names(text: str) -> list[str]:
    return text.split(", ")


def _scalar(text: str) -> object:
    """Inverts str() of a parameter's value: a number, truth value or None if it is one, else the text."""
    words = {"True": True, "False": False, "None": None}
    if text in words:
        return words[text]
    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        if str(value) == text and math.isfinite(value):
            return value
    return text


_NUMBER = r"-?[\d.]+(?:e[+-]?\d+)?"
_OVERLAP = r"(?P<shared>[\d.]+)% of the evaluation's runs of (?P<run_tokens>\d+) tokens stand in the calibration"
_DIFFERENCE = (
    rf"logits by (?P<relative>{_NUMBER}) of the largest, KL (?P<kl>{_NUMBER}) nat, "
    rf"loss (?P<loss_kept>{_NUMBER}) before and (?P<loss_now>{_NUMBER}) now"
)
_SUSPECT = "suspect: (?P<of>the machine's own speed: )?"
_OVER = r"more than (?P<limit>[\d.]+)%"

_READ: Mapping[str, Read] = {
    "tokens": _grouped,
    "expected": _grouped,
    "bytes_per_token": lambda text: float(_grouped(text)),
    "element_bytes": _scalar,
    "shared": _percent,
    "fraction": _percent,
    "limit": _percent,
    "modules": _names,
    "roles": _names,
    "tensors": _names,
    "names": lambda text: text.split("; "),
    "value": _scalar,
    **dict.fromkeys(("relative", "kl", "loss_kept", "loss_now"), float),
    **dict.fromkeys(
        (
            *("left_out", "samples", "given", "held", "layers", "length", "run_tokens", "seed", "threads"),
            *("batch_size", "prompt_tokens", "stored_bytes", "running_bytes"),
        ),
        int,
    ),
}
"""How to parse each argument, by name; all others are text."""

_LABELS: tuple[tuple[str, str, Raw], ...] = (
    (r"natively quantized reference: (?P<quantization>.+), degridded", "natively_quantized", {"degridded": True}),
    (r"natively quantized reference: (?P<quantization>.+)", "natively_quantized", {"degridded": False}),
    (rf"calibrated on the evaluation text: {_OVERLAP}", "leaked", {}),
    (r"calibrated on (?P<tokens>[\d,]+) tokens, which is little", "little_calibration", {}),
    (
        r"its library left out (?P<left_out>\d+) of (?P<samples>\d+) calibration samples",
        "calibration_left_out",
        {},
    ),
    (r"nothing of it is stored quantized: it has the unquantized model's size and speed", "stored_dense", {}),
    (
        r"dequantized on load: runs as dense matrices, its memory and speed are not the format's",
        "dequantized_on_load",
        {},
    ),
    (r"unpacked once: its codes are stored, and dense matrices beside them run", "unpacked_once", {}),
    (
        r"kernel fell back: (?P<layers>\d+) layers unpack before each product, "
        r"where the method is meant to multiply packed codes",
        "kernel_fell_back",
        {"family": "dequantize", "expected": "packed"},
    ),
    (
        rf"the artifact reloaded differs from the model that was saved, harmlessly: {_DIFFERENCE}",
        "reload_differs",
        {},
    ),
    (r"quantized beyond the (?P<scope>\w+): (?P<roles>.+)", "beyond_scope", {}),
    (r"left alone: (?P<modules>.+)", "left_alone", {}),
    (r"its publisher quantized (?P<fraction>[\d.]+)% of the decoder", "publisher_coverage", {}),
    (r"depends on the batch; run one window at a time", "batch_dependent", {}),
    (rf"{_SUSPECT}the GPU's clock fell by {_OVER}", "suspect", {"reason": "gpu_clock_fell"}),
    (
        rf"{_SUSPECT}the GPU held its clocks down: heat or a fault of its power",
        "suspect",
        {"reason": "gpu_held_down"},
    ),
    (rf"{_SUSPECT}heat held the GPU's clocks down", "suspect", {"reason": "gpu_heat"}),
    (rf"{_SUSPECT}another process held the GPU", "suspect", {"reason": "gpu_shared"}),
    (rf"{_SUSPECT}heat slowed the CPU down", "suspect", {"reason": "cpu_heat"}),
    (rf"{_SUSPECT}other processes took {_OVER} of the CPU", "suspect", {"reason": "cpu_shared"}),
    (rf"{_SUSPECT}the hypervisor gave {_OVER} of the CPU away", "suspect", {"reason": "cpu_steal"}),
    (
        rf"{_SUSPECT}(?P<phase>\w+) times drift by {_OVER} within a process "
        r"at batch (?P<batch_size>\d+), prompt (?P<prompt_tokens>\d+)",
        "suspect",
        {"reason": "times_drift"},
    ),
    (rf"{_SUSPECT}(?P<text>.+)", "suspect", {"reason": "other"}),
    (r"calibrated on the evaluation text(?:: (?P<text>.*))?", "leaked", {}),
    (r"override not applied: (?P<pattern>.+?): (?P<parameter>\w+)=(?P<value>.*)", "override_not_applied", {}),
    (r"(?P<pattern>[^:]+): (?P<parameter>\w+)=(?P<value>.*)", "overridden", {}),
)
"""Pattern, code, and arguments that do not depend on the sentence. The first matching pattern applies."""

_FACTS: tuple[tuple[str, str, str], ...] = (
    ("attention", "attention", r"(?P<implementation>.+)"),
    ("CPU threads", "cpu_threads", r"(?P<threads>\d+)"),
    ("CUDA kernels", "cuda_kernels", r"(?P<names>.+)"),
    ("key-value cache", "key_value_cache", r"(?P<kind>.+)"),
    ("KV cache", "cache_empty", r"none: no tensor was found in it"),
    (
        "KV cache",
        "cache_unlike_shape",
        r"(?P<bytes_per_token>[\d,]+) bytes per token; by the model's shape (?P<expected>[\d,]+) "
        r"at (?P<element_bytes>[\d.]+) bytes",
    ),
    (
        "calibration",
        "calibration",
        r"(?P<samples>\d+) × (?P<length>\d+) tokens of (?P<text>.+), (?P<packing>\w+), seed (?P<seed>\d+), "
        r"sha256 (?P<sha256>\w+)",
    ),
    ("calibration asked for", "calibration_asked_for", r"(?P<samples>\d+) samples; the text holds (?P<held>\d+)"),
    (
        "calibration consumed",
        "calibration_consumed",
        r"(?P<samples>\d+) of (?P<given>\d+) samples, sha256 (?P<sha256>\w+)",
    ),
    ("calibration overlap", "calibration_overlap", _OVERLAP),
    ("calibration overlap with (?P<task>.+)", "task_overlap", _OVERLAP),
    (
        "evaluation halves overlap",
        "halves_overlap",
        r"(?P<shared>[\d.]+)% of the second half's runs of (?P<run_tokens>\d+) tokens stand in the first half",
    ),
    ("reload difference", "reload_difference", _DIFFERENCE),
    ("conversion difference", "conversion_difference", _DIFFERENCE),
    ("source in stack (?P<stack>.+)", "source_in_stack", _DIFFERENCE),
    ("tokenizer of the converted model", "converted_tokenizer", r"(?P<remark>.+)"),
    (
        "repacked by the first forward pass",
        "repacked",
        r"(?P<stored_bytes>\d+) to (?P<running_bytes>\d+) bytes",
    ),
    ("quantization_config", "quantization_config", r"(?P<text>.+)"),
    ("not quantized", "not_quantized", r"(?P<tensors>.+)"),
    ("bound", "attention_not_bound", r"the attention is left out: (?P<reason>.*)"),
    ("energy of the (?P<counter>GPU|CPU)", "energy_not_measured", r"not measured: (?P<reason>.*)"),
    ("no rate of (?P<dtype>.+)", "rate_not_measured", r"(?P<reason>.*)"),
    ("noise floor of another dtype", "dtype_noise_not_measured", r"not measured in (?P<dtype>\w+): (?P<reason>.*)"),
    ("plausibility of the baseline", "plausibility_not_measured", r"not measured: (?P<reason>.*)"),
)
"""Pattern of the name, code, pattern of the value."""
_FAMILIES = {"multiply packed codes": "packed", "unpack before each product": "dequantize", "dense": "plain"}


MAX_SENTENCE = 10_000
"""Characters of a sentence that is parsed; the longest that schema 1 wrote list the tensors of a model."""


def upgraded(raw: Raw) -> Raw:
    """A schema 1 outcome with codes instead of sentences. Anything that is not a sentence stays, and decoding fails."""
    labels, facts = raw.get("labels", []), raw.get("facts", {})
    outcome = dict(raw)
    if isinstance(labels, list):
        outcome["labels"] = [label(each) if isinstance(each, str) else each for each in labels]
    if isinstance(facts, dict):
        outcome["facts"] = [fact(name, value) for name, value in facts.items()]
    return outcome


def label(sentence: str) -> Raw:
    """The label for a sentence of schema 1."""
    for pattern, code, constant in _LABELS if len(sentence) <= MAX_SENTENCE else ():
        match = re.fullmatch(pattern, sentence, re.DOTALL)
        arguments = _arguments(match) if match else None
        if arguments is not None:
            return {"code": code, "arguments": constant | arguments}
    return {"code": "other", "arguments": {"text": sentence}}


def fact(name: str, value: object) -> Raw:
    """The fact for a name and a value of schema 1."""
    if max(len(name), len(str(value))) > MAX_SENTENCE:
        return {"code": "noted", "arguments": {"name": name, "value": value}}
    counted = _counted(name, value)
    if counted is not None:
        return {"code": name, "arguments": counted}
    for called, code, pattern in _FACTS:
        named, match = re.fullmatch(called, name), re.fullmatch(pattern, str(value), re.DOTALL)
        arguments = _arguments(named, match) if named and match else None
        if arguments is not None:
            return {"code": code, "arguments": arguments}
    return {"code": "noted", "arguments": {"name": name, "value": value}}


def _counted(name: str, value: object) -> Raw | None:
    """The counts in ``28 × Linear, 7 × PackedLinear`` or ``28 multiply packed codes``, by what they count."""
    if name not in ("layers", "kernels") or not isinstance(value, str):
        return None
    pattern = r"(\d+) × (.+)" if name == "layers" else rf"(\d+) ({'|'.join(_FAMILIES)})"
    parts = [re.fullmatch(pattern, part) for part in value.split(", ")]
    if not all(parts):
        return None
    try:
        return {_FAMILIES.get(part[2], part[2]): int(part[1]) for part in parts if part}
    except ValueError:  # more digits than Python reads
        return None


def _arguments(*matches: re.Match[str]) -> Raw | None:
    """The arguments that patterns matched; None where one of them is no number, such as ``1.2.3``."""
    texts = {name: text for match in matches for name, text in match.groupdict().items()}
    try:
        arguments = {name: _READ.get(name, str)(text) for name, text in texts.items() if text is not None}
    except (ValueError, ArithmeticError):
        return None
    return arguments | ({"of": "machine" if texts["of"] else "run"} if "of" in texts else {})
