"""The vLLM engine: the parameters that a recipe may give it, how it loads, and what it declares."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from harness.core.capability import Endpoint
from harness.core.engine import Engine, EngineParams, Held, LoadRequest
from harness.core.foreign import quoted
from harness.core.format import TRANSFORMERS_FORMAT, VLLM_CONFIG_FORMAT
from harness.core.identity import KvCache
from harness.core.owner import temporary_folder
from harness.engines.vllm.model import COMPILING, VllmModel
from harness.engines.vllm.runtime import VllmRuntime, set_variables
from harness.engines.vllm.server import serving_vllm
from harness.engines.vllm.tables import CPU_CACHE_BLOCK, element_bytes, pool_bytes, refuses
from harness.errors import UnsupportedError, did_you_mean
from harness.models.headers import read_config, weight_files
from harness.models.loading import load_tokenizer
from harness.numerics.kv_cache import expected_bytes_per_token
from harness.recipe.fields import Bytes

CACHES: Mapping[KvCache, str] = {"model": "auto", "fp8": "fp8"}
"""vLLM's names of the types of keys and values, by the recipe's."""
CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "n_ctx")
MAX_TEXTS = 4096
MAX_TOKENS = 2**24
MAX_GPUS = 64
Count = Annotated[int, Field(gt=0, le=MAX_TEXTS)]


SWITCH = "0|1"
VARIABLES: Mapping[str, str] = {
    "VLLM_BLOCKSCALE_FP8_GEMM_FLASHINFER": SWITCH,
    "VLLM_CPU_ATTN_SPLIT_KV": SWITCH,
    "VLLM_CPU_INT4_W4A8": SWITCH,
    "VLLM_DISABLED_KERNELS": "[A-Za-z0-9_]+(,[A-Za-z0-9_]+)*",
    "VLLM_KV_CACHE_LAYOUT": "LBNHC|LBHNC|LHBNC|NHD|HND|BLHNC|BLNHC|BHLNC",
    "VLLM_MARLIN_USE_ATOMIC_ADD": SWITCH,
    "VLLM_USE_DEEP_GEMM": SWITCH,
    "VLLM_USE_DEEP_GEMM_E8M0": SWITCH,
    "VLLM_USE_V2_MODEL_RUNNER": SWITCH,
}
"""The environment variables that a recipe may set, each with the pattern of its values, as vLLM's envs.py reads them.

They choose a kernel, a layout or a runner. ``VLLM_BATCH_INVARIANT`` is not one of them because modules read it when
they are imported, before a recipe's value is set; nor is ``VLLM_MARLIN_INPUT_DTYPE``, because a kernel that rounds its
inputs by it does not show that it does.
"""
MAX_VALUE = 200


def _variables(given: Any) -> str:
    """Variables in one canonical text, in order of their names: ``NAME=VALUE NAME=VALUE``."""
    pairs = dict(each.partition("=")[::2] for each in given.split()) if isinstance(given, str) else given
    if not pairs or not isinstance(pairs, dict):
        raise PydanticCustomError("sentence", "expected a mapping of environment variables to values")
    chosen = {str(name): _value(str(name), value) for name, value in pairs.items()}
    return " ".join(f"{name}={value}" for name, value in sorted(chosen.items()))


def _value(name: str, value: Any) -> str:
    """A variable's value as text. Raises PydanticCustomError for another variable, and a value vLLM does not read."""
    if name not in VARIABLES:
        unknown = f"{quoted(name)} is no variable that a recipe may set{did_you_mean(name, VARIABLES)}"
        raise PydanticCustomError("sentence", "{unknown}", {"unknown": unknown})
    text = str(int(value) if isinstance(value, bool) else value)
    if isinstance(value, str | int) and len(text) <= MAX_VALUE and re.fullmatch(VARIABLES[name], text):
        return text
    wrong = f"expected {values(name)} for {name}; to try several, list mappings: [{{A: 0}}, {{A: 1}}]"
    raise PydanticCustomError("sentence", "{wrong}", {"wrong": wrong})


def values(name: str) -> str:
    """The values of a variable, in words."""
    if name == "VLLM_DISABLED_KERNELS":
        return "names of kernel classes with commas between them"
    *others, last = VARIABLES[name].split("|")
    return f"{', '.join(others)} or {last}"


Env = Annotated[str, BeforeValidator(_variables, json_schema_input_type=str | dict[str, str | int])]
"""A mapping of environment variables in a recipe; one text in a variant, whose parameters are single values."""


class VllmParams(EngineParams):
    """vLLM's own parameters, by its own names where it has them.

    ``max_num_seqs`` texts are computed together at most, and ``max_num_batched_tokens`` tokens in one step (null: as
    vLLM's offline class chooses, 4096 on a CPU). ``max_model_len`` is the longest text, its new tokens included (null:
    the model's own context, or what the cache holds). ``kv_cache_memory`` is the size of the key-value cache; without
    it vLLM takes 1 GiB on a CPU, and on a GPU what ``gpu_memory_utilization`` leaves. ``tensor_parallel`` GPUs share
    the model. ``enforce_eager`` runs layer by layer from Python instead of compiling a graph when loading, prefill
    included. ``env`` maps environment variables to values.
    """

    max_num_seqs: Count = 64
    max_num_batched_tokens: Annotated[int, Field(gt=0, le=MAX_TOKENS)] | None = None
    max_model_len: Annotated[int, Field(gt=1, le=MAX_TOKENS)] | None = None
    kv_cache_memory: Bytes | None = None
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    tensor_parallel: Annotated[int, Field(gt=0, le=MAX_GPUS)] = 1
    enforce_eager: bool = True
    env: Env | None = None

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables that ``env`` sets."""
        return dict(each.split("=", 1) for each in (self.env or "").split())


DEFAULTS = VllmParams()
STEP_TOKENS = {"cpu": 4096}
"""The tokens of a step that vLLM's offline class chooses, by device."""
OTHER_STEP_TOKENS = 16384
LIBRARIES_BYTES = 450 * 10**6
"""What vLLM takes more than torch and transformers, by the peaks of docs/measurements/vllm-cpu.md."""


def imports() -> None:
    set_variables({})
    import vllm  # noqa: F401
    from transformers import AutoTokenizer  # noqa: F401
    from vllm.engine.arg_utils import EngineArgs  # noqa: F401


def load(request: LoadRequest, params: VllmParams = DEFAULTS) -> VllmModel:
    """Loads a transformers checkpoint.

    Raises UnsupportedError, with vLLM's reason, if vLLM does not load it, or if this build runs on another device.
    """
    from vllm.platforms import current_platform

    set_variables(params.variables)
    if current_platform.device_type != request.device.partition(":")[0]:
        raise UnsupportedError(
            f"this build of vLLM runs on {current_platform.device_type}, and the run is for {request.device}: set "
            f"'device: {current_platform.device_type}' in the recipe, or give another interpreter: --python vllm=PATH"
        )
    tokenizer = load_tokenizer(request)
    with weights_alone(request.path) as folder:
        runtime = VllmRuntime(arguments(replace(request, path=folder), params, tokenizer is not None))
    return VllmModel(runtime, tokenizer, request)


@contextmanager
def serve(request: LoadRequest, params: VllmParams, folder: Path) -> Iterator[Endpoint]:
    """vLLM's server for a transformers checkpoint. See ``Serves``."""
    if load_tokenizer(request) is None:
        raise UnsupportedError("a server reads and writes text, and this checkpoint has no tokenizer")
    with weights_alone(request.path) as weights:
        own = arguments(replace(request, path=weights), params, True)
        with serving_vllm(request, own, params.variables, folder) as endpoint:
            yield endpoint


@contextmanager
def weights_alone(checkpoint: Path) -> Iterator[Path]:
    """A checkpoint's folder without safetensors files that hold no weights: vLLM loads every such file.

    An artifact holds one: the probe logits of the model that was saved.
    """
    own = {file.name for file in weight_files(checkpoint)}
    others = {file.name for file in checkpoint.glob("*.safetensors")} - own
    if not others:
        yield checkpoint
        return
    with temporary_folder() as folder:
        for file in checkpoint.iterdir():
            if file.name not in others:
                (folder / file.name).symlink_to(file.resolve())
        yield folder


def arguments(request: LoadRequest, params: VllmParams, tokenized: bool) -> dict[str, Any]:
    """The arguments of vLLM's EngineArgs.

    Prefix caching is off because a prefix that is read again is not computed again, and has no hidden states.
    Asynchronous scheduling is off so that the tokens of a step are known when it ends.
    """
    cache_bytes = pool_bytes(params, request.device)
    online: Any = request.quantization or {}  # arguments too, from a method that configures vLLM
    made: dict[str, Any] = {
        "model": str(request.path),
        "skip_tokenizer_init": not tokenized,
        "trust_remote_code": request.trust_remote_code,
        "dtype": request.dtype,
        "kv_cache_dtype": CACHES[request.kv_cache],
        "max_model_len": params.max_model_len or text_tokens(request, cache_bytes),
        "max_num_seqs": params.max_num_seqs,
        "max_num_batched_tokens": params.max_num_batched_tokens,
        "tensor_parallel_size": params.tensor_parallel,
        "gpu_memory_utilization": params.gpu_memory_utilization,
        "kv_cache_memory_bytes": cache_bytes,
        "enforce_eager": params.enforce_eager,
        "enable_prefix_caching": False,
        "async_scheduling": False,
        "disable_log_stats": True,
        "generation_config": "vllm",  # the checkpoint's own sampling settings stay out
        "load_format": "safetensors",
        "seed": 0,
        **online,
    }
    return {name: value for name, value in made.items() if value is not None}


def holds(params: VllmParams, device: str, serves: bool) -> Held:
    """Its cache has a given size; on a GPU, without one, it is what its share of the memory leaves."""
    cache_bytes = pool_bytes(params, device)
    return Held(
        libraries_bytes=LIBRARIES_BYTES,
        step_tokens=params.max_num_batched_tokens or STEP_TOKENS.get(device, OTHER_STEP_TOKENS),
        logit_rows=params.max_num_seqs,
        cache_bytes=cache_bytes,
        share=params.gpu_memory_utilization if cache_bytes is None else 0.0,
    )


def text_tokens(request: LoadRequest, cache_bytes: int | None) -> int | None:
    """One token more than the model's context, for the one that is sampled after it; None if the context is not known.

    -1 lets vLLM fit a shorter one into a cache of a given size. Without a given size, vLLM itself refuses to start.
    """
    config = read_config(request.path)
    text: Mapping[str, Any] = config.get("text_config") or config
    context = next((text[name] for name in CONTEXT_NAMES if isinstance(text.get(name), int)), None)
    if context is None or cache_bytes is None:
        return context and context + 1
    per_token = expected_bytes_per_token(config, element_bytes(request.kv_cache, request.dtype))
    kept = (math.ceil((context + 1) / CPU_CACHE_BLOCK) + 1) * CPU_CACHE_BLOCK  # one block is vLLM's own
    return context + 1 if per_token is not None and kept * per_token <= cache_bytes else -1


VLLM = Engine(
    name="vllm",
    version=1,
    writing_version=2,  # 1 gave samples of consecutive seeds the same noise
    summary="vLLM, in a stack of its own: the engine that serves; quality, tasks and speed",
    capabilities=frozenset({"logits", "factored", "ragged", "decodes", "completes"}),
    reads=(TRANSFORMERS_FORMAT, VLLM_CONFIG_FORMAT),
    imports=imports,
    load=load,
    params=VllmParams,
    packages=("vllm", "torch", "transformers", "tokenizers", "safetensors"),
    stack="vllm",
    refuses=refuses,
    holds=holds,
    gpus=lambda params, devices: params.tensor_parallel,
    caches=dict.fromkeys(CACHES, ()),
    decode_modes={"eager": tuple(CACHES)},
    decode_advice=COMPILING,
    serve=serve,
)
