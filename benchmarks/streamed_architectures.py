"""Which of transformers' causal language models stream: ``python benchmarks/streamed_architectures.py``.

Builds a tiny random model of each type of MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, saves it, and loads it both ways, in
float32 and in bfloat16. Compares the SHA-256 of the logits of three windows, and of their hidden states where the head
applies to these, streamed with all states in memory and with all of them on disk.

Prints a line for each type and then what docs/measurements/streaming.md records:

- ``equal``: bit by bit the same.
- ``unsupported``: refused, with the reason.
- ``differs``, ``crashed``: a fault of the harness. The exit code is then 1.
- ``not tried``: no model could be built of the shrunk configuration, or none that runs whole.

Takes minutes; types named as arguments are tried alone. Each is tried in a process of its own.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import transformers
from architectures import COMPLETED
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig
from transformers.integrations import bitsandbytes, torchao  # noqa: F401 - what each process would import anew
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from harness.core.capability import logits_each, states_each
from harness.core.engine import LoadRequest, Streaming
from harness.engines.transformers.engine import TransformersModel, load
from harness.engines.transformers.streamed import StreamedModel
from harness.errors import UnsupportedError, first_line_of

LIMIT_S = 40
"""For one type, of which most take a second or two."""
BUDGETS_BYTES = (2**30, 0)
DTYPES = ("float32", "bfloat16")
SHAPES = ((1, 17), (1, 40), (2, 33))
"""Windows that get longer, so that what a model keeps for the longest one so far changes, and a batch of two."""
VOCABULARY, SPECIAL = 128, 100
"""Tokens from SPECIAL on stand for images and the like. The windows have none of them."""
LAYERS = r"^(num_hidden_layers|n_layers?|num_layers|(num_)?(de|en)coder_layers|num_blocks|depth)$"
FEWEST_LAYERS, MOST_LAYERS = 4, 6
SIZES: Sequence[tuple[str, int]] = (
    (r"hidden_size_per_layer_input", 8),
    (r"vocab_size", VOCABULARY),
    (r"^(max_position_embeddings|n_positions|n_ctx|max_seq_len|max_target_positions|context_length)$", 256),
    (r"hidden_size(_global)?$|^d_model$|^n_embd$|^emb_dim$|embedding_size$|^word_embed_proj_dim$", 64),
    (r"intermediate_size|ffn_dim$|^n_inner$|^dff$|^dim_ff$|^d_inner$|feed_forward_size|ffn_hidden_size|^mlp_dim$", 96),
    (LAYERS, FEWEST_LAYERS),
    (r"^(mamba_n_heads|mamba_num_heads|n_mamba_heads)$", 8),
    (r"key_value_heads|kv_heads$|kv_n_heads|linear_num_key_heads", 2),
    (r"(^|_)(num_heads|num_attention_heads|attention_heads|n_heads?|num_value_heads)$", 4),
    (r"rope_head_dim|^rotary_dim$", 8),
    (r"head_dim$|^dim_head$|^kv_channels$|^d_kv$|^d_head$|attention_head_size", 16),
    (r"lora_rank|lowrank|laurel_rank|adapter_rank|norm_rank", 16),
    (r"(num|n_routed|num_local|moe_num)_experts$|zero_expert_num", 4),
    (r"experts_per_tok|^moe_k$|^moe_top_?k$|top_k_experts", 2),
    (r"^(n_group|n_groups|num_kv_shared_layers|global_attn_every_n_layers|index_topk_blocks)$", 2),
    (r"^(topk_group|first_k_dense_replace|num_dense_layers)$", 1),
    (r"^(sliding_window(_size)?|attention_chunk_size|attention_window_size|local_attention|window_size)$", 16),
    (r"^(mamba_)?chunk_size$|state_size|mamba_d_state|^index_topk$", 16),
    (r"^index_block_size$", 8),
    (r"^mamba_d_ssm$", 128),
    (r"^attn_layer_period$", 4),
    (r"^attn_layer_offset$", 2),
    (r"^image_size$", 112),
)
"""The most that a number may be, by the first pattern that its name matches."""
INDEXER = {
    **{"indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 16},
    **{"indexer_compress_ratio": 4, "split_ngram_parts": 4},
}
OWN: Mapping[str, Mapping[str, Any]] = {
    "bamba": {"attn_layer_indices": [1, 3]},
    "blt": {"encoder_hash_byte_group_vocab": 100},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 5e5}},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "longcat_flash": {"num_layers": 2, "num_hidden_layers": 4, "head_dim": 8},
    "mamba2": {"num_heads": 8},
    "mllama": {"text_config": {"cross_attention_layers": [1]}},
    "qwen4_exp": {"text_config": INDEXER},
    "qwen4_exp_text": INDEXER,
    "reformer": {"axial_pos_embds_dim": [16, 48], "axial_pos_shape": [16, 16], "hash_seed": 1},
    "rwkv": {"rescale_every": 2},
    "xmod": {"default_language": "en_XX"},
}
"""What single types need beside, or shows more of them."""
NOT_TRIED = "not tried"


@dataclass(frozen=True)
class Outcome:
    label: str
    detail: str = ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", help="model types; default: all")
    wanted = parser.parse_args().types or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    torch.compiler.set_stance("force_eager")
    found: dict[Outcome, list[str]] = {}
    for kind in wanted:
        began = time.perf_counter()
        outcome = alone(kind)
        why = re.split("[:;]", outcome.detail)[0] if outcome.label == "unsupported" else outcome.detail
        found.setdefault(replace(outcome, detail=why), []).append(kind)
        told = f"{outcome.label}: {outcome.detail}" if outcome.detail else outcome.label
        print(f"{kind}: {told} ({time.perf_counter() - began:.1f} s)", flush=True)
    print(f"\ntransformers {transformers.__version__}, {len(wanted)} types")
    for outcome, kinds in sorted(found.items(), key=lambda each: (each[0].label, -len(each[1]))):
        named = f" ({outcome.detail}): {', '.join(kinds)}" if outcome.detail else ""
        print(f"{len(kinds):4} {outcome.label}{named}")
    return int(any(outcome.label in ("differs", "crashed") for outcome in found))


def alone(kind: str) -> Outcome:
    """The outcome of a type, tried in a process of its own; what it was at if that did not end well, or in time."""
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    child = context.Process(target=try_type, args=(kind, sending))
    child.start()
    sending.close()
    child.join(LIMIT_S)
    if late := child.is_alive():
        child.kill()
        child.join()
    outcome = Outcome(NOT_TRIED)
    try:
        while receiving.poll():
            outcome = receiving.recv()
    except EOFError:
        pass
    if child.exitcode:
        how = f"took longer than {LIMIT_S} s" if late else f"the process ended with {child.exitcode}"
        return replace(outcome, detail=f"{outcome.detail}: {how}")
    return outcome


def try_type(kind: str, sending: Connection) -> None:
    """Sends what is to be said of a type if the process ends before the next message. The last is the outcome."""
    for outcome in outcomes(kind):
        sending.send(outcome)


def outcomes(kind: str) -> Iterator[Outcome]:
    yield Outcome(NOT_TRIED, "while it was built")
    try:
        config = CONFIG_MAPPING[kind](**shrunk(kind))
        if getattr(config, "is_decoder", None) is False and not config.is_encoder_decoder:
            config.is_decoder = True
        model = random_model(config)
    except Exception as error:  # noqa: BLE001 - whatever a model's class raises is the finding
        yield Outcome(NOT_TRIED, f"not built: {first_line_of(error)}")
        return
    for dtype in DTYPES:
        untried = NOT_TRIED if dtype == DTYPES[0] else "equal"
        yield Outcome(untried, f"not whole in {dtype}")
        with tempfile.TemporaryDirectory() as folder:
            request = LoadRequest(Path(folder), dtype, "cpu")
            try:
                model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size="60KB")
                whole = load(request)
                expected = digest(whole), digest(whole)
            except Exception as error:  # noqa: BLE001
                yield Outcome(untried, f"not whole in {dtype}: {first_line_of(error)}")
                return
            if len(set(expected)) > 1:
                yield Outcome(NOT_TRIED, "what it computes is random")
                return
            yield Outcome("crashed", f"streamed in {dtype}")
            outcome = compared(request, expected[0])
        yield outcome
        if outcome.label != "equal":
            return


def compared(request: LoadRequest, expected: str) -> Outcome:
    for states_bytes in BUDGETS_BYTES:
        try:
            found = digest(load(replace(request, streaming=Streaming(states_bytes))))
        except UnsupportedError as error:
            return Outcome("unsupported", first_line_of(error))
        except Exception as error:  # noqa: BLE001
            return Outcome("crashed", f"{type(error).__name__} in {request.dtype}: {first_line_of(error)}")
        if found != expected:
            return Outcome("differs", f"in {request.dtype}, with {states_bytes} bytes of states in memory")
    return Outcome("equal")


def digest(model: TransformersModel | StreamedModel) -> str:
    """The SHA-256 of logits and hidden states, which are logits too where the head does not apply to them."""
    model.probe_head()
    drawn = torch.Generator().manual_seed(1)
    windows = [torch.randint(4, SPECIAL, shape, generator=drawn) for shape in SHAPES]
    content = hashlib.sha256()
    with torch.inference_mode():
        for each in (*logits_each(model, windows), *states_each(model, windows)):
            content.update(f"{each.dtype} {tuple(each.shape)}".encode())
            content.update(each.contiguous().view(torch.uint8).numpy().tobytes())
    return content.hexdigest()


def random_model(config: PreTrainedConfig) -> Any:
    """A model in which no weights are all zero or all one, as some are that transformers draws."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return model


def shrunk(kind: str) -> Mapping[str, Any]:
    """What to build a small configuration with, which has a layer of each kind that the default has."""
    completed = COMPLETED.get(kind, {})
    default = CONFIG_MAPPING[kind](**completed)
    return {name: _size(name, value, default) for name, value in completed.items()} | _shrunk(
        default, OWN.get(kind, {})
    )


def _shrunk(default: PreTrainedConfig, own: Mapping[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(default)}
    values = {name: value for name, value in vars(default).items() if name in names}
    by_layer = {name: value for name, value in values.items() if _is_by_layer(value, default)}
    chosen = _one_of_each(list(zip(*by_layer.values(), strict=True)))
    small: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, PreTrainedConfig):
            small[name] = {"model_type": value.model_type, **_shrunk(value, own.get(name, {}))}
        elif name in by_layer:
            small[name] = [_size(name, value[place], default) for place in chosen]
        elif chosen and re.search(LAYERS, name):
            small[name] = len(chosen)
        elif getattr(type(default), name, None) is not None and _size(name, value, default) != value:
            small[name] = _size(name, value, default)  # what a class leaves open is made of the others
    return small | {name: value for name, value in own.items() if not isinstance(small.get(name), dict)}


def _is_by_layer(value: Any, default: PreTrainedConfig) -> bool:
    """Whether a list has an entry for each layer that tells of what kind it is."""
    if not isinstance(value, list | tuple) or len(value) != getattr(default, "num_hidden_layers", None):
        return False
    return len(set(map(repr, value))) < len(value) or isinstance(value[0], str)


def _one_of_each(kinds: Sequence[Any]) -> Sequence[int]:
    """The places of the first layer of each kind, repeated for a model of few kinds."""
    first = {repr(kind): place for place, kind in reversed(list(enumerate(kinds)))}
    places = sorted(first.values())[:MOST_LAYERS]
    return (places * FEWEST_LAYERS)[: max(len(places), FEWEST_LAYERS)]


def _size(name: str, value: Any, config: PreTrainedConfig) -> Any:
    if isinstance(value, list):
        return [_size(name, each, config) for each in value]
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    if re.search(r"_token_(id|index)$", name):
        return value if value < SPECIAL else SPECIAL + value % (VOCABULARY - SPECIAL)
    if name == "num_key_value_heads" and value == config.num_attention_heads:
        name = "num_attention_heads"  # an architecture that does not share them may ask for as many
    most = next((size for pattern, size in SIZES if re.search(pattern, name)), value)
    return min(value, most)


if __name__ == "__main__":
    sys.exit(main())
