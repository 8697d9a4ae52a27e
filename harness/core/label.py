"""Labels and facts of a run: a code from a closed list, its arguments, and a sentence built from both for display.

Programs test codes. Sentences are for people and may be reworded at any time: nothing parses or stores them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from harness.core.capability import KernelFamily
from harness.core.foreign import quoted
from harness.core.identity import Scalar

Argument = Scalar | tuple[str, ...]

LabelCode = Literal[
    "natively_quantized",
    "leaked",
    "little_calibration",
    "calibration_left_out",
    "stored_dense",
    "dequantized_on_load",
    "unpacked_once",
    "kernel_fell_back",
    "activations_rounded",
    "activations_kept",
    "computed_in_float32",
    "dtype_changed",
    "reload_differs",
    "engine_differs",
    "beyond_scope",
    "left_alone",
    "overridden",
    "override_not_applied",
    "publisher_coverage",
    "batch_dependent",
    "zero_scales",
    "experts_not_calibrated",
    "rounded_to_nearest",
    "may_have_spilled",
    "pipelined",
    "streamed",
    "quantized_in_parts",
    "remote",
    "suspect",
    "implausible_baseline",
    "engine_not_separated",
    "answers_short",
    "gaps_left_out",
    "requests_queue",
    "other",
]
FactCode = Literal[
    "layers",
    "kernels",
    "kernels_at",
    "arithmetic",
    "cuda_kernels",
    "attention",
    "cpu_threads",
    "process_shared",
    "key_value_cache",
    "cache_unlike_shape",
    "cache_empty",
    "calibration",
    "calibration_asked_for",
    "calibration_consumed",
    "calibration_overlap",
    "task_overlap",
    "halves_overlap",
    "reload_difference",
    "conversion_difference",
    "source_in_stack",
    "converted_tokenizer",
    "repacked",
    "streaming",
    "quantized_each_pass",
    "quantization_config",
    "not_quantized",
    "other_inputs",
    "attention_not_bound",
    "energy_not_measured",
    "gpu_state_not_reported",
    "rate_not_measured",
    "dtype_noise_not_measured",
    "plausibility_not_measured",
    "scales",
    "experts_seen",
    "experts_not_counted",
    "routers_not_read",
    "router_kl_not_measured",
    "slo_not_held",
    "requests_failed",
    "tokens_in_bursts",
    "noted",
    "node_lost",
]
SuspectReason = Literal[
    "gpu_clock_fell",
    "gpu_held_down",
    "gpu_heat",
    "gpu_shared",
    "cpu_heat",
    "cpu_shared",
    "cpu_steal",
    "times_drift",
    "other",
]
ImplausibleReason = Literal["perplexity", "guessing", "tokens_per_character", "bos", "random_weights"]

KERNELS: Mapping[KernelFamily, str] = {
    "packed": "multiply packed codes",
    "dequantize": "unpack before each product",
    "plain": "dense",
}
IMPLAUSIBLE: Mapping[ImplausibleReason, tuple[str, str]] = {
    "perplexity": (
        "its perplexity is {figure:.4g} per token, above {limit:g}",
        "no better than token frequencies alone; check the tokenizer, BOS, that the weights are trained and that the "
        "text is in a language of the model",
    ),
    "guessing": (
        "its perplexity is {figure:.4g}, above half of its vocabulary ({limit:g})",
        "little better than guessing, as random weights are",
    ),
    "tokens_per_character": (
        "its tokenizer produces {figure:.3g} tokens per character of Latin text, above {limit:g}",
        "check the tokenizer",
    ),
    "bos": (
        "BOS in front of a window lowers its loss by {figure:.3g} nat per token, above {limit:g}",
        "the text lacks the BOS that the model needs; the protocol llama.cpp with 'bos: always' begins every window "
        "with it",
    ),
    "random_weights": ("its weights are random", "only size, speed and memory mean anything"),
}
"""The finding, and what it means."""
_SUSPECT: Mapping[SuspectReason, str] = {
    "gpu_clock_fell": "the GPU's clock fell by more than {limit:.0%}",
    "gpu_held_down": "the GPU held its clocks down: heat or a fault of its power",
    "gpu_heat": "heat held the GPU's clocks down",
    "gpu_shared": "another process held the GPU",
    "cpu_heat": "heat slowed the CPU down",
    "cpu_shared": "other processes took more than {limit:.0%} of the CPU",
    "cpu_steal": "the hypervisor gave more than {limit:.0%} of the CPU away",
    "times_drift": "{phase} times drift by more than {limit:.0%} within a process at batch {batch_size}, "
    "prompt {prompt_tokens}",
    "other": "{text}",
}


def overlap_words(shared: float, run_tokens: int) -> str:
    """How much of an evaluation text occurs in a calibration set, as a fraction of its token sequences."""
    return f"{shared:.3%} of the evaluation's runs of {run_tokens} tokens stand in the calibration"


def difference_words(relative: float, kl: float, loss_kept: float, loss_now: float) -> str:
    """How far logits are from the saved ones: relative to the largest, as KL, and both losses (nats per token)."""
    return (
        f"logits by {relative:.3g} of the largest, KL {kl:.3g} nat, loss {loss_kept:.4f} before and {loss_now:.4f} now"
    )


def implausible_finding(reason: ImplausibleReason, figure: float | None, limit: float | None) -> str:
    """The finding about a baseline, without what it means."""
    return IMPLAUSIBLE[reason][0].format(figure=figure, limit=limit)


def _suspect(reason: SuspectReason, of: Literal["run", "machine"], **found: Argument) -> str:
    whose = "the machine's own speed: " if of == "machine" else ""
    return f"suspect: {whose}{_SUSPECT[reason].format(**found)}"


def _implausible(reason: ImplausibleReason, figure: float | None = None, limit: float | None = None) -> str:
    return f"implausible baseline: {implausible_finding(reason, figure, limit)}: {IMPLAUSIBLE[reason][1]}"


def _leaked(shared: float | None = None, run_tokens: int | None = None, text: str | None = None) -> str:
    """``text`` is the wording of an older record."""
    how_much = text if shared is None or run_tokens is None else overlap_words(shared, run_tokens)
    return f"calibrated on the evaluation text: {how_much}" if how_much else "calibrated on the evaluation text"


def _native(quantization: str, degridded: bool) -> str:
    return f"natively quantized reference: {quantization}{', degridded' if degridded else ''}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _first_of(names: Sequence[str], count: int) -> str:
    """The first of ``count`` names, which are all that a label holds."""
    return _listed(names) + (f" and {count - len(names)} more" if count > len(names) else "")


@dataclass(frozen=True)
class Form:
    """The text of a code. ``sentence`` builds it from the arguments; ``meaning`` explains the code in the docs.

    ``example`` holds example arguments. ``name`` is a fact's name with arguments in braces; labels have none.
    """

    sentence: Callable[..., str]
    meaning: str
    example: Mapping[str, Argument] = field(default_factory=dict)
    name: str = ""

    def check(self, arguments: Mapping[str, Argument]) -> None:
        """Raises ValueError if these arguments do not fit the sentence."""
        try:
            inspect.signature(self.sentence).bind(**arguments)
            self.sentence(**arguments)
            self.name.format(**arguments)
        except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
            raise ValueError(f"no sentence can be made of {quoted(dict(arguments))}: {error}") from None


LABELS: Mapping[LabelCode, Form] = {
    "natively_quantized": Form(
        _native,
        "the model was published in few bits; ends in `, degridded` if it was degridded",
        {"quantization": "Q4_1", "degridded": True},
    ),
    "leaked": Form(
        _leaked,
        "more than 0.1% of the evaluation's 16-token sequences occur in the calibration text, and `--allow-leak` "
        "admitted it",
        {"shared": 0.03125, "run_tokens": 16},
    ),
    "little_calibration": Form(
        lambda tokens: f"calibrated on {tokens:,} tokens, which is little",
        "fewer than 32,768",
        {"tokens": 16384},
    ),
    "calibration_left_out": Form(
        lambda left_out, samples: f"its library left out {left_out} of {samples} calibration samples",
        "they never reached the model",
        {"left_out": 3, "samples": 128},
    ),
    "stored_dense": Form(
        lambda: "nothing of it is stored quantized: it has the unquantized model's size and speed",
        "the method promises no codes, such as a merged adapter",
    ),
    "dequantized_on_load": Form(
        lambda: "dequantized on load: runs as dense matrices, its memory and speed are not the format's",
        "quantized on disk, dense in memory",
    ),
    "unpacked_once": Form(
        lambda: "unpacked once: its codes are stored, and dense matrices beside them run",
        "the matrices that multiply are dense; the codes are in memory beside them",
    ),
    "kernel_fell_back": Form(
        lambda layers, family, expected, at=(): (
            f"kernel fell back: {layers} layers {KERNELS[family]}, where the method is meant to {KERNELS[expected]}"
            + (f", in {'; '.join(at)}" if at else "")
        ),
        "layers ran on a slower kind of kernel than the method is meant to use, everywhere or at the named points of "
        "the grid: many kernels change with the number of rows",
        {"layers": 28, "family": "dequantize", "expected": "packed"},
    ),
    "activations_rounded": Form(
        lambda layers, to, declared: (
            f"activations rounded further than the format asks: to {to} in {layers} layers, not to {declared}"
        ),
        "the kernel rounds the inputs of quantized layers to fewer bits than the checkpoint's format or the model's "
        "dtype; the quality is that of both together",
        {"layers": 28, "to": "int8", "declared": "bfloat16"},
    ),
    "activations_kept": Form(
        lambda layers, to, declared: (
            f"activations not rounded as the format asks: {to} in {layers} layers, not {declared}"
        ),
        "the engine's kernel does not round the inputs of quantized layers as the checkpoint's format asks; "
        "another kernel, on another machine, would give lower quality",
        {"layers": 28, "to": "bfloat16", "declared": "float8_e4m3fn"},
    ),
    "computed_in_float32": Form(
        lambda layers, dtype: f"{layers} layers multiply in float32: this machine has no kernel for {dtype} here",
        "layers of a 16-bit model are widened to float32 for each product, which costs the speed of 16 bits",
        {"layers": 28, "dtype": "float16"},
    ),
    "dtype_changed": Form(
        lambda ran, asked: f"its library runs the model in {ran}, not in {asked}: its figures are those of {ran}",
        "a library converts a model whose dtype its kernels do not multiply; seen in the hidden states that the model "
        "computes. Measure the unquantized model in the same dtype to see what the quantization alone changes",
        {"ran": "float16", "asked": "float32"},
    ),
    "reload_differs": Form(
        lambda **difference: (
            "the artifact reloaded differs from the model that was saved, harmlessly: " + difference_words(**difference)
        ),
        "what was read back differs by more than rounding, but by less than 10⁻⁴ nat per token",
        {"relative": 0.0347, "kl": 1.14e-05, "loss_kept": 6.2771, "loss_now": 6.2775},
    ),
    "engine_differs": Form(
        lambda engine, **difference: (
            f"{engine} computes the artifact unlike the model that was saved: {difference_words(**difference)}"
        ),
        "beyond rounding, but by at most 0.1 nat per token: the engine's kernels round activations or accumulate "
        "differently. Compare with the same engine's unquantized model",
        {"engine": "vllm", "relative": 0.0347, "kl": 0.0024, "loss_kept": 6.2771, "loss_now": 6.2785},
    ),
    "beyond_scope": Form(
        lambda scope, roles: f"quantized beyond the {scope}: {_listed(roles)}",
        "embeddings or head are stored quantized too, as llama.cpp does by default",
        {"scope": "decoder", "roles": ("embedding", "head")},
    ),
    "left_alone": Form(
        lambda modules: f"left alone: {_listed(modules)}",
        "what the recipe's scope skips",
        {"modules": ("model.layers.0.*",)},
    ),
    "overridden": Form(
        lambda pattern, parameter, value: f"{pattern}: {parameter}={value}",
        "what the recipe's scope overrides",
        {"pattern": "*.down_proj", "parameter": "bits", "value": 8},
    ),
    "override_not_applied": Form(
        lambda pattern, parameter, value: f"override not applied: {pattern}: {parameter}={value}",
        "the method's library does not support parameters per module",
        {"pattern": "*.down_proj", "parameter": "bits", "value": 8},
    ),
    "publisher_coverage": Form(
        lambda fraction: f"its publisher quantized {fraction:.1%} of the decoder",
        "a published checkpoint below 99%",
        {"fraction": 0.75},
    ),
    "batch_dependent": Form(
        lambda: "depends on the batch; run one window at a time",
        "a token's result depends on the rest of the batch",
    ),
    "zero_scales": Form(
        lambda scales, count, tensors: (
            f"{scales:,} of its scales are zero, so that the weights of their groups are: in "
            + _first_of(tensors, count)
        ),
        "harmless where these weights are zero in the unquantized model too, as padding is. A run is `invalid` if a "
        "scale is NaN or infinite, or all scales of a tensor are zero",
        {"scales": 12, "count": 1, "tensors": ("model.layers.0.mlp.experts.3.down_proj.scale",)},
    ),
    "experts_not_calibrated": Form(
        lambda dead, starved, least, experts, share, names: (
            f"{dead:,} of {experts:,} experts saw no calibration token, and {starved:,} more fewer than {least} "
            f"({share:.1%} of the weights together): {_first_of(names, dead + starved)}"
        ),
        "the unquantized model's own routers send them too few of the calibration set's tokens, so that they are "
        "quantized on hardly any evidence: see [the expert audit](experts.md#tokens-per-expert). (llm-compressor sends "
        "every token to every expert: its evidence is of tokens that others get.) Calibrate with more text, or text "
        "that is more like what the model will read",
        {
            **{"dead": 1, "starved": 1, "least": 256, "experts": 64, "share": 0.03},
            "names": ("layers.0.mlp: 3", "layers.1.mlp: 17"),
        },
    ),
    "rounded_to_nearest": Form(
        lambda modules, of, share, names: (
            f"{modules:,} of {of:,} matrices were only rounded to nearest ({share:.1%} of the weights): "
            + _first_of(names, modules)
        ),
        "calibration gave the method's library too little to do more for them. AWQ leaves a group of matrices that "
        "read the same input without scales if one of them saw no token; GPTQ leaves a matrix without error "
        "compensation that saw few tokens, or whose Hessian it cannot invert; auto-round leaves a matrix that no token "
        "reached, or a block that no step improved, as it began; Quark leaves what its tables do not name: see "
        "[the expert audit](experts.md#what-was-only-rounded)",
        {"modules": 14, "of": 112, "share": 0.07, "names": ("model.layers.1.mlp.experts.0.gate_proj",)},
    ),
    "may_have_spilled": Form(
        lambda fraction: (
            f"the GPU's memory was {fraction:.0%} in use under WSL2, where what does not fit is moved to the host: its "
            "speed may be that of host memory"
        ),
        "Windows manages the GPU's memory there: a model too large for the GPU runs on, slowly, and nothing fails. "
        "Close other programs, or run it on a GPU with more memory",
        {"fraction": 0.97},
    ),
    "pipelined": Form(
        lambda gpus: f"pipeline over {gpus} GPUs",
        "its layers are spread over GPUs that compute one after the other: its speed is not that of one GPU",
        {"gpus": 2},
    ),
    "streamed": Form(
        lambda: "streamed: read from disk part by part, so that it has no speed and its memory is not the model's",
        "one layer at a time was in memory, because the whole model did not fit or the recipe says `residency: "
        "streamed`; its quality is bit by bit that of the model loaded whole: see [streaming](streaming.md)",
    ),
    "quantized_in_parts": Form(
        lambda: "quantized with one part in memory at a time: its cost is that of this way",
        "the unquantized model did not fit or the recipe says `residency: streamed`; what is made is byte for byte "
        "that of the model quantized whole, and time and peak of quantizing are not: see [streaming](streaming.md)",
    ),
    "remote": Form(
        lambda model: f"remote: {model} on a server that the user runs",
        "what the server did to the model is known by its name alone: it has no bytes, no memory and no kernels here, "
        "and its hardware and versions are not those of the record: see [servers](servers.md)",
        {"model": "llama-awq"},
    ),
    "suspect": Form(
        _suspect,
        "the machine, or the times themselves, drifted while a run was timed: see [suspect](speed.md#suspect)",
        {"reason": "cpu_shared", "of": "run", "limit": 0.1},
    ),
    "implausible_baseline": Form(
        _implausible,
        "no quality relative to this baseline can be trusted: see [implausible "
        "baselines](measuring.md#implausible-baselines). Records do not hold this label; it is derived when a "
        "table is made",
        {"reason": "perplexity", "figure": 1234.0, "limit": 300.0},
    ),
    "engine_not_separated": Form(
        lambda engine: (
            f"not separated from the engine: no comparable unquantized model was measured on {engine}, so its quality "
            "includes what the engine itself changes"
        ),
        "a variant on another engine than the reference whose [control](measuring.md#the-control-of-an-engine) was not "
        "measured, or not on the same text or task with the same libraries. Records do not hold this label; it is "
        "derived when a table is made",
        {"engine": "vllm"},
    ),
    "answers_short": Form(
        lambda tokens: f"answers are shorter than asked for: the server ended some before {tokens} tokens",
        "the server does not follow `ignore_eos`, so that variants that write other texts write other amounts: their "
        "times per request are not of equal work",
        {"tokens": 64},
    ),
    "gaps_left_out": Form(
        lambda step: f"times between tokens are those of one in {step} requests: all are more than a record may have",
        "a load of many long answers whose length is up to the model. All other times are those of all requests; with "
        "fewer requests, or with the levels in several recipes, all times between tokens are kept",
        {"step": 3},
    ),
    "requests_queue": Form(
        lambda concurrent, together: (
            f"requests wait in a queue: up to {concurrent} are open at the same time, and the server computes "
            f"{together} together"
        ),
        "the engine's own parameter (`slots` of llamacpp, `max_num_seqs` of vllm) is below the load, so that times "
        "include waiting in the server's queue",
        {"concurrent": 64, "together": 16},
    ),
    "other": Form(
        lambda text: str(text),
        "a label of an older record in words that this qharness does not know",
        {"text": "fell back to a slow kernel"},
    ),
}
FACTS: Mapping[FactCode, Form] = {
    "layers": Form(
        lambda **layers: _listed(f"{count} × {name}" for name, count in sorted(layers.items())),
        "which classes of linear layers the variant has, and how many of each",
        {"Linear": 7, "PackedLinear": 21},
        "layers",
    ),
    "kernels": Form(
        lambda **families: _listed(f"{count} {KERNELS[kind]}" for kind, count in sorted(families.items())),  # type: ignore[index]
        "how many of them multiply a single row by packed codes, unpack before each product, or are dense",
        {"packed": 28},
        "kernels",
    ),
    "kernels_at": Form(
        lambda phase, batch_size, prompt_tokens, names, **families: (
            _listed(f"{count} {KERNELS[kind]}" for kind, count in sorted(families.items()))  # type: ignore[index]
            + (f" ({'; '.join(names)})" if names else "")
        ),
        "the same at a point of the grid, where that differs or a GPU was profiled, and the CUDA kernels that took the "
        "longest there",
        {
            "phase": "decode",
            "batch_size": 1,
            "prompt_tokens": 512,
            "names": ("gemm_4bit_simt", "ampere_sgemm_32x128_tn"),
            "packed": 28,
        },
        "kernels of {phase} at batch {batch_size}, prompt {prompt_tokens}",
    ),
    "arithmetic": Form(
        lambda **kinds: _listed(f"{count} × {kind}" for kind, count in sorted(kinds.items())),
        "what their inputs are rounded to and in which dtype they multiply, for engines that tell",
        {"int8 inputs, int8 products": 28},
        "arithmetic",
    ),
    "cuda_kernels": Form(
        lambda names: "; ".join(names),
        "on a GPU, those that took the longest on the probe",
        {"names": ("ampere_sgemm_32x128_tn",)},
        "CUDA kernels",
    ),
    "attention": Form(
        lambda implementation: str(implementation),
        "the attention that actually ran",
        {"implementation": "sdpa"},
        "attention",
    ),
    "cpu_threads": Form(
        lambda threads: str(threads), "the CPU threads that the model ran on", {"threads": 8}, "CPU threads"
    ),
    "process_shared": Form(
        lambda earlier: f"after {', '.join(earlier)}, with the model that was loaded for it",
        "the tasks that the same process had answered before with the same loaded model; what they left in memory is "
        "part of this run's peaks",
        {"earlier": ("hellaswag", "piqa")},
        "process shared",
    ),
    "key_value_cache": Form(
        lambda kind: str(kind),
        "what keys and values were stored in, if not in the model's own cache",
        {"kind": "Q8_0 of llama.cpp"},
        "key-value cache",
    ),
    "cache_unlike_shape": Form(
        lambda bytes_per_token, expected, element_bytes: (
            f"{bytes_per_token:,.0f} bytes per token; by the model's shape {expected:,} at {element_bytes} bytes"
        ),
        "both figures, if the cache takes more or less than one key and one value per token and layer",
        {"bytes_per_token": 8192.0, "expected": 4096, "element_bytes": 2},
        "KV cache",
    ),
    "cache_empty": Form(
        lambda: "none: no tensor was found in it", "the cache holds no tensor, so its size is not known", {}, "KV cache"
    ),
    "calibration": Form(
        lambda samples, length, text, packing, seed, sha256: (
            f"{samples} × {length} tokens of {text}, {packing}, seed {seed}, sha256 {sha256}"
        ),
        "samples × length, text, packing, seed, sha256 of the ids",
        {"samples": 128, "length": 512, "text": "wikitext", "packing": "crop", "seed": 0, "sha256": "0123456789ab"},
        "calibration",
    ),
    "calibration_asked_for": Form(
        lambda samples, held: f"{samples} samples; the text holds {held}",
        "present if the text holds fewer samples than the recipe requested",
        {"samples": 128, "held": 100},
        "calibration asked for",
    ),
    "calibration_consumed": Form(
        lambda samples, given, sha256: f"{samples} of {given} samples, sha256 {sha256}",
        "how many samples reached the model while it was quantized, and their sha256",
        {"samples": 128, "given": 128, "sha256": "0123456789ab"},
        "calibration consumed",
    ),
    "calibration_overlap": Form(
        overlap_words,
        "the share of the evaluation's 16-token sequences that occur in the calibration text",
        {"shared": 0.00125, "run_tokens": 16},
        "calibration overlap",
    ),
    "task_overlap": Form(
        lambda task, shared, run_tokens: overlap_words(shared, run_tokens),
        "the same for the requests of a task",
        {"task": "arc_easy", "shared": 0.0, "run_tokens": 16},
        "calibration overlap with {task}",
    ),
    "halves_overlap": Form(
        lambda shared, run_tokens: (
            f"{shared:.3%} of the second half's runs of {run_tokens} tokens stand in the first half"
        ),
        "the share of the 16-token sequences in the second half of the scored text that also occur in its first half",
        {"shared": 0.004, "run_tokens": 16},
        "evaluation halves overlap",
    ),
    "reload_difference": Form(
        difference_words,
        "of the checkpoint from the model that was saved, on the probe: logits over the largest one, KL, both losses",
        {"relative": 0.0, "kl": 0.0, "loss_kept": 6.25, "loss_now": 6.25},
        "reload difference",
    ),
    "conversion_difference": Form(
        difference_words,
        "the same for the model converted for another engine, compared with transformers",
        {"relative": 0.0125, "kl": 1e-05, "loss_kept": 6.25, "loss_now": 6.25},
        "conversion difference",
    ),
    "source_in_stack": Form(
        lambda stack, **difference: difference_words(**difference),
        "the same for the unquantized source, as the stack's libraries read it",
        {"stack": "autoawq", "relative": 0.0, "kl": 0.0, "loss_kept": 6.25, "loss_now": 6.25},
        "source in stack {stack}",
    ),
    "converted_tokenizer": Form(
        lambda remark: str(remark),
        "what a GGUF file cannot express about it; no figure here depends on it",
        {"remark": "its way of splitting text is not known"},
        "tokenizer of the converted model",
    ),
    "repacked": Form(
        lambda stored_bytes, running_bytes: f"{stored_bytes} to {running_bytes} bytes",
        "bytes of all weights as stored, and as the kernels keep them; vLLM's repack while loading",
        {"stored_bytes": 1024, "running_bytes": 2048},
        "repacked by the first forward pass",
    ),
    "streaming": Form(
        lambda passes, parts, largest_part_bytes, checkpoint_bytes, bytes_read, read_s, spilled_bytes: (
            f"{passes} passes over {parts} parts, the largest of {largest_part_bytes / 1e9:.3g} GB; "
            f"{bytes_read / 1e9:.3g} GB read in {read_s:.3g} s, {checkpoint_bytes / 1e9:.3g} GB a pass; states of "
            f"{spilled_bytes / 1e9:.3g} GB waited on disk"
        ),
        "what streaming the model cost this run",
        {
            "passes": 6,
            "parts": 27,
            "largest_part_bytes": 205_000_000,
            "checkpoint_bytes": 5_200_000_000,
            "bytes_read": 30_000_000_000,
            "read_s": 21.5,
            "spilled_bytes": 0,
        },
        "streaming",
    ),
    "quantized_each_pass": Form(
        lambda reason: f"quantized again in each pass: {reason}",
        "why a streamed run quantized its layers each time it loaded them, instead of reading what was quantized once",
        {"reason": "torchao does not save this layout"},
        "quantized in each pass",
    ),
    "quantization_config": Form(
        lambda text: str(text),
        "the checkpoint's own description: every single value",
        {"text": "bits 4, group_size 32, quant_method gptq"},
        "quantization_config",
    ),
    "not_quantized": Form(
        lambda tensors: _listed(tensors),
        "matrices in scope that are stored plain",
        {"tensors": ("model.layers.0.mlp.gate.weight",)},
        "not quantized",
    ),
    "other_inputs": Form(
        lambda parameters, stored_bytes: f"{parameters:,} parameters in {stored_bytes:,} bytes",
        "the parts of a multimodal model that read images or sound: loaded, never quantized, and not run by any text",
        {"parameters": 416_866_032, "stored_bytes": 833_732_064},
        "vision and audio, out of scope",
    ),
    "attention_not_bound": Form(
        lambda reason: f"the attention is left out: {reason}",
        "what is left out of the [bounds](speed-bounds.md), and why",
        {"reason": "a layer's shape is not known"},
        "bound",
    ),
    "energy_not_measured": Form(
        lambda counter, reason: f"not measured: {reason}",
        "why it was not measured",
        {"counter": "CPU", "reason": "no RAPL counter below /sys/class/powercap"},
        "energy of the {counter}",
    ),
    "gpu_state_not_reported": Form(
        lambda values: _listed(values),
        "what NVML does not report of this GPU and therefore nothing here judges, with its reasons: a MIG slice has no "
        "clocks, power and temperature, and an older driver lacks functions",
        {"values": ("gpu_sm_clock_mhz: Not Supported", "gpu_temperature_c: Not Supported")},
        "GPU state not reported",
    ),
    "rate_not_measured": Form(
        lambda dtype, reason: str(reason),
        "in a machine run: why torch cannot multiply this dtype there",
        {"dtype": "float8_e4m3fn", "reason": "not implemented"},
        "no rate of {dtype}",
    ),
    "dtype_noise_not_measured": Form(
        lambda dtype, reason: f"not measured in {dtype}: {reason}",
        "why there is none",
        {"dtype": "bfloat16", "reason": "the baseline's weights are stored quantized"},
        "noise floor of another dtype",
    ),
    "plausibility_not_measured": Form(
        lambda reason: f"not measured: {reason}",
        "why its tokens were not counted and BOS was not probed",
        {"reason": "the tokenizer cannot decode"},
        "plausibility of the baseline",
    ),
    "scales": Form(
        lambda scales, tensors: f"{scales:,} in {tensors:,} tensors looked at: all are finite",
        "how many scales the stored checkpoint has, or the loaded model if loading it quantizes; each was looked at",
        {"scales": 18432, "tensors": 28},
        "scales",
    ),
    "experts_seen": Form(
        lambda experts, least, median, most: (
            f"each of {experts:,} experts saw {least:,} to {most:,} calibration tokens, median {median:,}"
        ),
        "how many tokens of the calibration set the unquantized model's own routers send to an expert",
        {"experts": 64, "least": 0, "median": 1310, "most": 9120},
        "calibration tokens per expert",
    ),
    "experts_not_counted": Form(
        lambda reason: f"not counted: {reason}",
        "why it is not known",
        {"reason": "it takes 61.1 GB, and 40.2 GB are free"},
        "calibration tokens per expert",
    ),
    "routers_not_read": Form(
        lambda reason: f"not read: {reason}",
        "why the routers of a mixture of experts were not compared with the baseline's, or not counted for the bounds",
        {"reason": "the engine vllm does not show what routers do"},
        "routers",
    ),
    "router_kl_not_measured": Form(
        lambda tokens, blocks: (
            f"not measured: infinite for {tokens} tokens (in {blocks[0]}{' and others' if len(blocks) > 1 else ''}), "
            "to which the variant's router gives an expert a probability of exactly 0 and the baseline's does not"
        ),
        "why the KL of a mixture's routers is left out",
        {"tokens": 3, "blocks": ("layers.2.mlp",)},
        "router KL",
    ),
    "slo_not_held": Form(
        lambda slo, level, share, missed, lowest="": (  # older records have no lowest
            f"no load{f' down to {lowest}' if lowest else ''} holds {slo}; the nearest is {level}, where {share:.1%} "
            f"of the requests meet it, and the others mostly miss {missed}"
        ),
        "no level of load that was measured holds the recipe's SLO: how near the best one comes; `error` is a request "
        "without answer",
        {
            "slo": "ttft ≤ 0.5 s for 90%",
            "level": "1 concurrent requests",
            "share": 0.6,
            "missed": "ttft",
            "lowest": "1 concurrent requests",
        },
        "SLO",
    ),
    "requests_failed": Form(
        lambda failed, requests, level, reason: f"{failed} of {requests} without an answer: {reason}",
        "requests that the server did not answer at a level of load, and the most frequent reason",
        {"failed": 3, "requests": 64, "level": "8 concurrent requests", "reason": "Service Unavailable"},
        "requests at {level}",
    ),
    "tokens_in_bursts": Form(
        lambda: "tokens arrive in bursts: there is no ITL, and a limit on it is one on TPOT",
        "a fifth of the tokens or more arrive with the one before, so that the gaps between events are not those "
        "between tokens",
        name="arrival of tokens",
    ),
    "noted": Form(
        lambda name, value: str(value),
        "what a method noted: `training_loss_first` and `training_loss_last` (nat per token), `training_rows`, "
        "`quantized_in` (a dtype), `calibration_tokens_left_out` (of those that reached one matrix, the most "
        "that `awq` did not search scales on), `matrices_only_clipped` (those that AWQ of `quark` clipped and did not "
        "scale)",
        {"name": "training_loss_last", "value": 2.5},
        "{name}",
    ),
    "node_lost": Form(
        lambda node, reason: f"made once more, because it was lost on {node}: {reason}",
        "the node that had begun this run, or what connects it, failed before the run's outcome arrived, so that the "
        "run was made again; its figures are of the second time only",
        {"node": "node-2", "reason": "it does not answer any more"},
        "run lost",
    ),
}


@dataclass(frozen=True)
class Label:
    """A warning that every table carries. Raises ValueError for an unknown code or unsuitable arguments."""

    code: LabelCode
    arguments: Mapping[str, Argument] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if self.code not in LABELS:
            raise _unknown(self.code)
        LABELS[self.code].check(self.arguments)

    @property
    def sentence(self) -> str:
        return LABELS[self.code].sentence(**self.arguments)


@dataclass(frozen=True)
class Fact:
    """A finding that tables show by name. Raises ValueError for an unknown code or unsuitable arguments."""

    code: FactCode
    arguments: Mapping[str, Argument] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if self.code not in FACTS:
            raise _unknown(self.code)
        FACTS[self.code].check(self.arguments)

    @property
    def name(self) -> str:
        return FACTS[self.code].name.format(**self.arguments)

    @property
    def value(self) -> str:
        """The finding, as text."""
        return FACTS[self.code].sentence(**self.arguments)

    @property
    def sentence(self) -> str:
        return f"{self.name}: {self.value}"


def _unknown(code: str) -> ValueError:
    return ValueError(f"unknown code {code!r}; was it written by a newer qharness? Then upgrade qharness to read it")


def codes(labels: Iterable[Label]) -> tuple[LabelCode, ...]:
    """Each code once, in order of first appearance."""
    return tuple(dict.fromkeys(label.code for label in labels))
