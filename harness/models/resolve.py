"""A configuration as transformers itself completes it: defaults, windows, and the model's parameters. No weights.

Reading a configuration class imports torch, which planning must not. So this runs in a separate process, and its
answers are cached by the content of the configuration and the version of transformers.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from harness.core.model import LayerCache
from harness.core.owner import temporary_folder
from harness.core.site import CONFIGURATIONS, MAX_SEALED_BYTES
from harness.errors import ResultsError, SourceError, first_line_of
from harness.host.machine import cache_folder, installed_version
from harness.models.caches import count_caches
from harness.models.loading import auto_class
from harness.models.native import FORMATS
from harness.models.scope import holds_experts
from harness.numerics.traffic import ACTIVE_COUNTS, EXPERT_COUNTS
from harness.storage.disk import Disk
from harness.storage.folder_seal import read_sealed_json, with_seal

VERSION = 8
"""Increase this with every change of the answers: cached ones are then computed again."""
TIMEOUT_S = 300
MAX_ADDED_BYTES = 4 * 2**30
"""Address space that building a model without weights may take; the largest published ones take some 100 MB."""
KEYS = (
    *("hidden_size", "intermediate_size", "moe_intermediate_size", "n_inner", "vocab_size", "max_position_embeddings"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "num_hidden_layers", "kv_lora_rank", "global_head_dim"),
    *("qk_head_dim", "v_head_dim", "rope_parameters", *EXPERT_COUNTS, *ACTIVE_COUNTS),
)
"""The keys that are read from a text model's configuration, by transformers' common names."""

MX_BLOCK = 32
"""Numbers that share a scale in an MX format."""
Config = Mapping[str, Any]


@dataclass(frozen=True)
class Resolved:
    """A configuration with all defaults that its class supplies.

    ``text`` has those KEYS of the text model that its class defines. ``layer_types`` has transformers' type of each
    layer that has its own cache, and ``window`` the number of tokens that sliding and chunked layers keep. ``shapes``
    are all parameters, as transformers names and fuses them, without a tied head; None if transformers has no
    language model of the type, and then ``unbuilt`` says why. ``rotary`` counts the elements of its rotary buffers.

    ``caches`` is what each layer keeps, counted in the model itself; None if ``uncounted`` says why it was not.
    ``unloaded`` counts the parameters for other inputs than text that a checkpoint holds and its language model leaves
    out. ``native`` are the parameters of a natively quantized checkpoint as transformers stores them: dtype and shape.
    """

    text: dict[str, Any]
    layer_types: tuple[str, ...]
    window: int | None
    tied: bool
    shapes: dict[str, tuple[int, ...]] | None
    rotary: int | None
    unbuilt: str | None
    caches: tuple[LayerCache, ...] | None = None
    uncounted: str | None = None
    unloaded: int = 0
    native: dict[str, tuple[str, tuple[int, ...]]] | None = None


def resolve(label: str, config: Config) -> Resolved:
    """The configuration as transformers reads it. Raises SourceError if it cannot, or does not know the type."""
    (answer,) = answers([config])
    if "error" in answer:
        raise SourceError(f"{label}: {answer['error']}")
    return _decoded(answer)


def answers(configs: Sequence[Config]) -> list[dict[str, Any]]:
    """transformers' answer for each configuration: from the cache, and all others together from one process."""
    keys = [_key(config) for config in configs]
    known = {key: kept for key in keys if (kept := _kept(key)) is not None}
    lacking = {key: config for key, config in zip(keys, configs, strict=True) if key not in known}
    if lacking:
        for key, answer in zip(lacking, _asked(list(lacking.values())), strict=True):
            known[key] = answer
            if "error" not in answer and not answer["unbuilt"]:  # errors may pass: a full disk, a missing package
                _keep(key, answer)
    return [known[key] for key in keys]


def described(config: Any, build: bool = True) -> dict[str, Any]:
    """The answer for a transformers configuration object; requires torch. ``build`` includes the parameters."""
    text = config.get_text_config(decoder=True)
    kinds, settings = _layers(text)
    answer: dict[str, Any] = {
        "text": {key: value for key in KEYS if (value := _value(text, key)) is not None},
        "layer_types": list(kinds),
        "window": settings.get("sliding_window"),
        "tied": bool(getattr(config, "tie_word_embeddings", False)),
        "shapes": None,
        "rotary": None,
        "unbuilt": None,
        "caches": None,
        "uncounted": None,
        "unloaded": 0,
        "native": None,
    }
    answer["text"].setdefault("num_key_value_heads", _key_value_heads(text))
    return answer | (_built(config) if build else {})


def _layers(text: Any) -> tuple[Sequence[str], Mapping[str, Any]]:
    """The type of each layer that has its own cache, and its settings; none of a model of several parts, as BLT is."""
    from transformers.cache_utils import get_layer_types_and_kwargs

    try:
        kinds, settings = get_layer_types_and_kwargs(text)
    except AttributeError:
        return (), {}
    return kinds, settings


def _value(text: Any, key: str) -> Any:
    """A key of a text model; the list of its values where they differ by layer, which its class does not hand out."""
    try:
        return getattr(text, key, None)
    except Exception:  # noqa: BLE001 - of a class that each version of transformers has elsewhere
        return [getattr(layer, key) for layer in text.per_layer_config]


def _key_value_heads(text: Any) -> int | None:
    """The number of heads whose keys are cached, for configurations with another key for it (Falcon, GPT-BigCode).

    Falcon's newer architecture shares keys among heads, but transformers caches them for each head.
    """
    shared = getattr(text, "multi_query", False) and not getattr(text, "new_decoder_architecture", False)
    return 1 if shared else _value(text, "num_attention_heads")


def of_folder(folder: Path, trust_remote_code: bool = False, build: bool = False) -> Resolved:
    """Resolves a checkpoint's folder in this process, for workers, which import torch anyway.

    Without ``build`` there are no parameters, and no counted caches.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        return _decoded(described(config, build))
    except Exception as error:  # noqa: BLE001 - whatever a configuration's class raises is an answer
        raise SourceError(f"{folder}: its layers cannot be read from its configuration: {error}") from None


def _decoded(answer: Mapping[str, Any]) -> Resolved:
    shapes, native = answer["shapes"], answer["native"]
    return Resolved(
        answer["text"],
        tuple(answer["layer_types"]),
        answer["window"],
        answer["tied"],
        None if shapes is None else {name: tuple(shape) for name, shape in shapes.items()},
        answer["rotary"],
        answer["unbuilt"],
        None if answer["caches"] is None else tuple(LayerCache(*each) for each in answer["caches"]),
        answer["uncounted"],
        answer["unloaded"],
        None if native is None else {name: (dtype, tuple(shape)) for name, (dtype, shape) in native.items()},
    )


def _key(config: Config) -> str:
    """By content; some published configurations hold infinities, which are not JSON for ``spec.digest``."""
    content = json.dumps([VERSION, installed_version("transformers"), config], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _place(key: str) -> Path:
    return cache_folder() / CONFIGURATIONS / f"{key}.json"


def _kept(key: str) -> dict[str, Any] | None:
    """The cached answer; None, so that it is computed again, if there is none or it is not as it was written."""
    try:
        kept = read_sealed_json(_place(key), MAX_SEALED_BYTES)
    except ResultsError:
        return None
    return json.loads(kept["answer"]) if kept.get("key") == key else None


def _keep(key: str, answer: Mapping[str, Any]) -> None:
    """Caches an answer if possible; otherwise it is computed again the next time.

    It is sealed as text, because some configurations hold infinities, which the canonical JSON of a seal has no place
    for.
    """
    with suppress(OSError):
        Disk().write_whole(_place(key), json.dumps(with_seal({"key": key, "answer": json.dumps(answer)})).encode())


def _asked(configs: Sequence[Config]) -> list[dict[str, Any]]:
    """Computes answers in a separate process. Raises SourceError if it does not answer."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONSAFEPATH": "1"}
    environment["OMP_NUM_THREADS"] = "1"  # on many cores, threads reserve more address space than the limit
    command = [sys.executable, "-m", __name__]
    try:
        ended = subprocess.run(
            command,
            input=json.dumps(configs),
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        raise SourceError(f"transformers did not read the configuration within {TIMEOUT_S} s") from None
    try:
        found: list[dict[str, Any]] = json.loads(ended.stdout)
    except ValueError:
        last = (ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"])[-1]
        raise SourceError(f"transformers could not be asked for the configuration: {last}") from None
    return found


def _answer(config: Config) -> dict[str, Any]:
    from transformers import AutoConfig

    kind = config.get("model_type")
    try:
        with temporary_folder() as folder:
            (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
            found = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        return described(found)
    except Exception as error:  # noqa: BLE001 - whatever a configuration's class raises is an answer
        reason = first_line_of(error)
        if "model_type" in reason or "does not recognize" in reason:
            reason = f"it knows no model type {kind!r}"
        if "custom code" in reason:
            reason = f"the type {kind!r} comes with code of its own, which is not run here"
        version = installed_version("transformers")
        return {"error": f"transformers {version} does not read its configuration: {reason}"}


def _built(config: Any) -> dict[str, Any]:
    """Every parameter of a configuration's language model, built on the meta device: only shapes."""
    try:
        model = _on_meta(config)
        unloaded, native = _unloaded(config, model), _native(config)
    except Exception as error:  # noqa: BLE001 - whatever building raises says why there are no shapes
        return {"unbuilt": first_line_of(error)}
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    tied = head is not None and embedding is not None and head.weight is embedding.weight
    rotary = sum(buffer.numel() for name, buffer in model.named_buffers() if name.endswith("inv_freq"))
    shapes = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    return {
        "tied": tied,
        "rotary": rotary,
        "shapes": shapes,
        "unloaded": unloaded,
        "native": native,
        **_counted(model),
    }


def _on_meta(config: Any) -> Any:
    """The model that the harness loads, in bfloat16; kernels do not matter."""
    import torch

    with torch.device("meta"):
        made = auto_class(type(config)).from_config(
            config, dtype=torch.bfloat16, attn_implementation="eager", trust_remote_code=False
        )
    return made.eval()


def _counted(model: Any) -> dict[str, Any]:
    """What its layers cache, or why that cannot be counted."""
    try:
        return {"caches": [astuple(layer) for layer in count_caches(model)]}
    except NotImplementedError:  # torch's, of an operation that has no shape without numbers
        return {"uncounted": "its forward pass computes shapes from numbers, which a model without weights lacks"}
    except Exception as error:  # noqa: BLE001 - whatever a model's code raises says why
        return {"uncounted": first_line_of(error)}


def _unloaded(config: Any, model: Any) -> int:
    """The parameters of a multimodal checkpoint that its language model leaves out."""
    import torch
    from transformers import AutoModelForImageTextToText

    if type(model.config) is type(config) or type(config) not in AutoModelForImageTextToText._model_mapping:
        return 0
    with torch.device("meta"):
        whole = AutoModelForImageTextToText.from_config(config, trust_remote_code=False)
    return whole.num_parameters() - model.num_parameters()  # type: ignore[no-any-return]


def _native(config: Any) -> dict[str, Any] | None:
    """The parameters of a checkpoint in a native format: those of the modules that transformers prepares for them.

    Of MXFP4 it prepares them on some machines only, so these follow from the format: 32 codes of 4 bits and a scale of
    8 (OCP Microscaling Formats 1.0, 5.2), of all matrices of experts.
    """
    from transformers.quantizers import AutoHfQuantizer

    wanted = getattr(config, "quantization_config", None)
    if not wanted or wanted.get("quant_method") not in FORMATS:
        return None
    model = _on_meta(config)
    if wanted["quant_method"] == "mxfp4":
        return dict(_mxfp4(model, wanted.get("modules_to_not_convert") or ()))
    AutoHfQuantizer.from_config(wanted, pre_quantized=True).preprocess_model(model)
    return {name: _stored(parameter.dtype, parameter.shape) for name, parameter in model.named_parameters()}


def _mxfp4(model: Any, left: Sequence[str]) -> Iterator[tuple[str, list[Any]]]:
    for name, parameter in model.named_parameters():
        if not holds_experts(name, parameter.dim()) or any(fnmatchcase(name, f"{pattern}*") for pattern in left):
            yield name, _stored(parameter.dtype, parameter.shape)
            continue
        blocks = parameter.numel() // MX_BLOCK
        yield f"{name}_blocks", _stored("uint8", (blocks, MX_BLOCK // 2))
        yield f"{name}_scales", _stored("uint8", (blocks,))


def _stored(dtype: Any, shape: Sequence[int]) -> list[Any]:
    return [str(dtype).removeprefix("torch."), list(shape)]


def _limit_process() -> None:
    """Bounds what a configuration can make this process take, beyond the libraries that it needs in any case."""
    import resource

    import torch  # noqa: F401 - its address space does not count
    import transformers  # noqa: F401

    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    most = pages * resource.getpagesize() + MAX_ADDED_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = round(used.ru_utime + used.ru_stime) + TIMEOUT_S
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))


def _main() -> None:
    """Reads configurations from standard input and answers on standard output, which libraries must not write to."""
    if sys.platform == "linux":
        _limit_process()
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)
        json.dump([_answer(config) for config in json.load(sys.stdin)], out)


if __name__ == "__main__":
    _main()
