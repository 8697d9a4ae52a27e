"""Makes the checkpoint that every run of a model starts from: converted, dequantized, degridded, or random.

One part of the model is in memory at a time, whatever it is made from.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.core.engine import LoadRequest, Streaming
from harness.core.model import ModelRef
from harness.core.owner import temporary_folder
from harness.errors import InvalidRunError
from harness.models.degrid import draw_factors, rescale
from harness.models.gguf.loading import GgufTensors
from harness.models.gguf.tokenizer import file_tokenizer
from harness.models.headers import has_tokenizer
from harness.models.streaming.parts import ModelPart, Parts
from harness.models.streaming.writing import CheckpointWriter
from harness.numerics.prediction import mean_divergence

if TYPE_CHECKING:
    import torch

    from harness.models.streaming.forwards import Forwards

VERSION = 4
"""Increase this with every change of what is made: models prepared by an older version are made again."""
PROBE_TOKENS = 64
PROBE_STATES_BYTES = 2**28
"""For the states of so few tokens, which never take so much."""
DEGRID_KL_LIMIT = 1e-6
"""Nats per token by which a degridded model may differ from the plain one."""


@dataclass(frozen=True)
class Prepared:
    """A prepared model: ``degrid_kl`` is the degridded model's KL from the plain one in nats per token, None if nothing
    was degridded; ``tokenizer`` is the model's own, None if it has none.
    """

    degrid_kl: float | None
    tokenizer: Any | None


def prepare(ref: ModelRef, out: Path, time_s: float | None = None) -> Prepared:
    """Writes a transformers checkpoint to ``out``; the caller copies the files of a checkpoint's own tokenizer.

    ``time_s`` is how long it may take. Raises InvalidRunError if degridding changed the model by more than
    DEGRID_KL_LIMIT, and UnsupportedError if its tokenizer cannot be read, or its disk is too slow.
    """
    tokenizer = _tokenizer(ref)  # before the weights, to reject an unreadable tokenizer at once
    divergence = None
    if ref.kind == "synthetic" and ref.degrid is None:
        _draw(ref, out)
    else:
        with temporary_folder() as folder, closing(_parts(ref, folder, time_s)) as parts:
            if ref.degrid is None:
                _save(parts, out)
            else:
                divergence = _save_degridded(parts, ref.degrid, out)
    if tokenizer is not None and ref.kind == "gguf":  # transformers does not write back everything in the files
        tokenizer.save_pretrained(out)
    return Prepared(divergence, tokenizer)


def _parts(ref: ModelRef, folder: Path, time_s: float | None) -> Parts:
    """The parts of the model that a reference names. A random one is drawn into the ``folder``.

    Degridding reads them twice: the model as it is, and moved.
    """
    if ref.kind == "gguf":
        reader = GgufTensors(Path(ref.path))
        return Parts(LoadRequest(Path(ref.path), ref.dtype, "cpu", read=reader.load), reader)
    if ref.kind == "synthetic":
        _draw(ref, folder)
        ref = replace(ref, path=str(folder))
    streaming = Streaming(PROBE_STATES_BYTES, time_s=time_s, passes=1 if ref.degrid is None else 2)
    remote = ref.trust_remote_code
    return Parts(LoadRequest(Path(ref.path), ref.dtype, "cpu", trust_remote_code=remote, streaming=streaming))


def _draw(ref: ModelRef, out: Path) -> None:
    from harness.models.streaming.drawing import draw

    draw(ref, out)


def _save(parts: Parts, out: Path) -> None:
    with CheckpointWriter(parts.model, out) as writer:
        for part in parts.parts.values():
            parts.load(part.name)
            writer.write(parts.held_by(part))
            parts.free(part.name)


def _save_degridded(parts: Parts, seed: int, out: Path) -> float:
    """Returns the divergence of the degridded model from the plain one, in nats per token.

    Both are in float32, because rounding to a shorter dtype alone would exceed the limit.
    """
    from harness.models.streaming.forwards import Forwards

    model, dtype = parts.model, parts.model.dtype
    drawn = draw_factors(model, seed)
    factors = dict(zip(model.get_decoder().layers, drawn, strict=True))
    forwards = Forwards(parts, PROBE_STATES_BYTES)
    staying = [parts.parts[name] for name in sorted(parts.loaded)]

    def widen(part: ModelPart) -> None:
        part.module.float()

    with CheckpointWriter(model, out) as writer:

        def move(part: ModelPart) -> None:
            widen(part)
            if part.module in factors:
                rescale(part.module, factors[part.module], model.config)
            writer.write({name: tensor.to(dtype) for name, tensor in parts.held_by(part).items()})

        logits = []
        for change in (widen, move):
            parts.on_load = change
            for part in staying:
                change(part)
            logits.append(_probe(model, forwards))
    divergence = mean_divergence(*logits)
    if not divergence < DEGRID_KL_LIMIT:
        raise InvalidRunError(f"degridding changed the model: KL {divergence:.3g} nats per token")
    return divergence


def _tokenizer(ref: ModelRef) -> Any | None:
    """None for a model without a tokenizer: a synthetic one, or a file or folder without one."""
    from transformers import AutoTokenizer

    path = Path(ref.path)
    if ref.kind == "gguf":
        return file_tokenizer(path)
    if ref.kind == "synthetic" or not has_tokenizer(path):
        return None
    return AutoTokenizer.from_pretrained(path, trust_remote_code=ref.trust_remote_code)


def _probe(model: Any, forwards: Forwards) -> torch.Tensor:
    """Logits of a fixed sequence of tokens, (tokens, vocabulary), in one pass."""
    import torch

    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.config.get_text_config().vocab_size, (1, PROBE_TOKENS), generator=generator)
    with torch.inference_mode():
        (logits,) = forwards.run([lambda: model(input_ids=tokens, use_cache=False).logits])
    return logits[0]
