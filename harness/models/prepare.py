"""Makes the checkpoint that every run of a model starts from: converted, dequantized, degridded, or random."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from harness.core.model import ModelRef
from harness.errors import InvalidRunError, UnsupportedError
from harness.models.degrid import degrid
from harness.models.gguf.tokenizer import file_tokenizer
from harness.models.headers import has_tokenizer, read_config
from harness.models.loading import auto_class, checkpoint_class
from harness.models.native import unpacking_configuration, whole_blocks
from harness.numerics.prediction import mean_divergence

VERSION = 4
"""Increase this with every change of what is made: models prepared by an older version are made again."""
PROBE_TOKENS = 64
DEGRID_KL_LIMIT = 1e-6
"""Nats per token by which a degridded model may differ from the plain one."""


@dataclass(frozen=True)
class Prepared:
    """A prepared model: ``degrid_kl`` is the degridded model's KL from the plain one in nats per token, None if nothing
    was degridded; ``tokenizer`` is the model's own, None if it has none.
    """

    degrid_kl: float | None
    tokenizer: Any | None


def prepare(ref: ModelRef, out: Path) -> Prepared:
    """Writes a transformers checkpoint to ``out``; the caller copies the files of a checkpoint's own tokenizer.

    Raises InvalidRunError if degridding changed the model by more than DEGRID_KL_LIMIT, and UnsupportedError if its
    tokenizer cannot be read.
    """
    tokenizer = _tokenizer(ref)  # before the weights, to reject an unreadable tokenizer at once
    model = _build(ref)
    divergence = None
    if ref.degrid is not None:
        wanted = model.dtype
        model = model.float()  # rounding to a shorter dtype alone would exceed the limit
        before = _probe(model)
        degrid(model, ref.degrid)
        divergence = mean_divergence(before, _probe(model))
        if not divergence < DEGRID_KL_LIMIT:
            raise InvalidRunError(f"degridding changed the model: KL {divergence:.3g} nats per token")
        model = model.to(wanted)
    model.save_pretrained(out)
    if tokenizer is not None and ref.kind == "gguf":  # transformers does not write back everything in the files
        tokenizer.save_pretrained(out)
    return Prepared(divergence, tokenizer)


def _build(ref: ModelRef) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig

    path = Path(ref.path)
    if ref.kind == "synthetic":
        settings = dict(ref.config)
        try:
            config = AutoConfig.for_model(settings.pop("model_type"), **settings)
        except (ValueError, KeyError) as error:
            raise UnsupportedError(f"transformers knows no such model: {error}") from None
        torch.manual_seed(ref.seed)
        return auto_class(type(config)).from_config(config, dtype=ref.dtype)
    if ref.kind == "gguf":
        with tempfile.TemporaryDirectory() as folder, _header_read_once():
            # A folder of its own: transformers also reads adjacent files, which are not hashed.
            (Path(folder) / path.name).symlink_to(path.absolute())
            return AutoModelForCausalLM.from_pretrained(
                folder,
                gguf_file=path.name,
                quantization_config=GgufConfig(gguf_file=path.name, dequantize=True),
                dtype=ref.dtype,
            )
    options: dict[str, Any] = {}
    if ref.dequantize is not None:
        options["quantization_config"] = unpacking_configuration(ref.dequantize)
    with whole_blocks(read_config(path).get("quantization_config") or {}):
        model = checkpoint_class(path, ref.trust_remote_code).from_pretrained(
            path, dtype=ref.dtype, use_safetensors=True, trust_remote_code=ref.trust_remote_code, **options
        )
    if ref.dequantize is not None:
        model._weight_conversions = None  # else it would be written as it was read: packed
    return model


@contextmanager
def _header_read_once() -> Iterator[None]:
    """transformers reads a GGUF file's metadata once for the configuration and once for the weights, and makes gguf's
    map of tensor names anew for each module of the model: most of the time that loading takes."""
    import gguf

    own = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    try:
        for name, made in own.items():
            setattr(gguf, name, cache(made))
        yield
    finally:
        for name, made in own.items():
            setattr(gguf, name, made)


def _tokenizer(ref: ModelRef) -> Any | None:
    """None for a model without a tokenizer: a synthetic one, or a file or folder without one."""
    from transformers import AutoTokenizer

    path = Path(ref.path)
    if ref.kind == "gguf":
        return file_tokenizer(path)
    if ref.kind == "synthetic" or not has_tokenizer(path):
        return None
    return AutoTokenizer.from_pretrained(path, trust_remote_code=ref.trust_remote_code)


def _probe(model: Any) -> Any:
    """Logits of a fixed sequence of tokens, (tokens, vocabulary)."""
    import torch

    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.config.get_text_config().vocab_size, (1, PROBE_TOKENS), generator=generator)
    with torch.inference_mode():
        return model(input_ids=tokens, use_cache=False).logits[0]
