"""The llama.cpp engine: GGUF files on a CPU or a GPU, with the same token ids as every other engine."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from harness.core.capability import Decoder, Product, Prompt, StoredTensor
from harness.core.engine import Engine, EngineParams, Held, LoadRequest
from harness.core.format import GGUF_FORMAT
from harness.core.identity import DecodeMode
from harness.engines.llamacpp.batching import write
from harness.engines.llamacpp.server import refuses, serve, slot_tokens
from harness.errors import InvalidRunError, SourceError, UnsupportedError
from harness.libraries.llamacpp import BATCH_TOKENS, CACHES, CELLS, PACKAGE, Piece, Runtime
from harness.models.gguf.convert import convert
from harness.models.gguf.layout import GgufFile, ledger, read
from harness.models.gguf.tokenizer import tokenizer_of
from harness.models.headers import GGUF_FILE, weight_files
from harness.models.scope import in_decoder
from harness.recipe.fields import BatchSize, Threads, Tokens
from harness.tasks.sampling import Sampling
from harness.tasks.stops import StopStrings

if TYPE_CHECKING:
    import torch

NEUTRAL: Mapping[str, float] = {"top_k": 0, "min_p": 0.0}
"""Settings of sampling that llama.cpp's texts are not drawn by, with the values at which they do nothing."""
SAMPLING = frozenset({"do_sample", "temperature", "top_p", *NEUTRAL})
USUAL_TOP_K = 50
"""Of transformers, for a task that samples and does not say."""
_ASSIGNED = re.compile(r"layer +(\d+) assigned to device (\S+?),")
_BUFFER = re.compile(r"(\S+) model buffer size = +([\d.]+) MiB")


@dataclass(frozen=True)
class Written:
    """The contents of the cache: tokens per sequence, and ``states``, a placeholder tensor of the cache's byte size."""

    lengths: tuple[int, ...]
    states: torch.Tensor


class LlamaCppParams(EngineParams):
    """CPU ``threads`` (null is the recipe's), ``ubatch`` tokens computed together, and when to use ``flash_attention``.

    llama.cpp needs flash attention for a key-value cache in fewer bits. Answers of tasks, and requests of its server,
    are written ``slots`` at a time. A slot of the server has at most ``slot_tokens`` tokens, new ones included (null:
    the model's context, but at most 4096).
    """

    threads: Threads | None = None
    ubatch: BatchSize = BATCH_TOKENS
    flash_attention: Literal["auto", "enabled", "disabled"] = "auto"
    slots: BatchSize = 16
    slot_tokens: Tokens | None = None


class LlamaCppModel:
    """A GGUF model. It is not factored: llama.cpp returns logits but neither hidden states nor its head."""

    def __init__(
        self, runtime: Runtime, file: GgufFile, tokenizer: Any | None, request: LoadRequest, params: LlamaCppParams
    ) -> None:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        if runtime.vocabulary != file.vocabulary:
            raise InvalidRunError(f"its vocabulary has {runtime.vocabulary} tokens, its embeddings {file.vocabulary}")
        self._runtime = runtime
        self._file = file
        self._stored = ledger(file)
        self._exact = False
        self.tokenizer = tokenizer
        self.vocabulary = runtime.vocabulary
        self.device = request.device
        self.attention = "llama.cpp's own"
        if params.flash_attention != "auto":
            self.attention = f"{self.attention}, flash attention {params.flash_attention}"
        self._slots = params.slots
        self.threads = runtime.threads
        kept = CACHES[request.kv_cache]
        self.cache_description: str | None = (
            f"{kept}, as llama.cpp's programs have it" if kept == "F16" else f"{kept} of llama.cpp"
        )
        numbers, size = GGML_QUANT_SIZES[GGMLQuantizationType[kept]]
        self._cache_bits = 8 * size / numbers
        self.context_length = file.context_length

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        return self._runtime.logits(tokens).to(self.device)

    def own_cache_logits(self, tokens: torch.Tensor) -> torch.Tensor:
        with self._runtime.own_cache():
            return self.logits(tokens)

    def complete(
        self, prompts: Sequence[Prompt], new_tokens: int, stops: Sequence[str], seed: int, **settings: Any
    ) -> list[list[int]]:
        """Writes as many texts together as there are slots. They end as in llama.cpp's programs, also with a turn."""
        if self.tokenizer is None:
            raise UnsupportedError("a text is searched for its stops, and the model has no tokenizer")
        drawn, strings = sampling(settings, seed), StopStrings(self.tokenizer, stops)

        def choose(logits: torch.Tensor, places: Sequence[tuple[int, int]]) -> list[int]:
            scores = logits if drawn is None else drawn.scores(logits, places)
            return list(scores.argmax(dim=-1).tolist())

        def ended(texts: Sequence[Sequence[int]]) -> list[bool]:
            return [
                stopped or len(text) >= new_tokens or self._runtime.ends(text[-1])
                for text, stopped in zip(texts, strings.end(texts), strict=True)
            ]

        at_once = min(self._slots, self._runtime.most_rows, len(prompts))
        self._runtime.room(at_once, max(len(prompt.tokens) for prompt in prompts) + new_tokens)
        return write(self._runtime, prompts, at_once, choose, ended)

    def prefill(self, tokens: torch.Tensor) -> tuple[torch.Tensor, Any]:
        rows, length = tokens.shape
        if self._exact:
            self._runtime.empty()
        else:
            self._runtime.room(rows, length + CELLS)
        logits = self._runtime.feed([Piece(row, 0, ids) for row, ids in enumerate(tokens.tolist())])
        return logits.to(self.device), self._written((length,) * rows)

    def decode(self, tokens: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
        lengths = cache.lengths
        pieces = [Piece(row, lengths[row], ids) for row, ids in enumerate(tokens.tolist())]
        return self._runtime.feed(pieces).to(self.device), self._written(tuple(length + 1 for length in lengths))

    @contextmanager
    def decoder(self, mode: DecodeMode, prompt: torch.Tensor, new_tokens: int) -> Iterator[Decoder]:
        if mode != "eager":
            raise UnsupportedError("llama.cpp decodes by graphs of its own; leave out decode_mode")
        rows, length = prompt.shape
        self._runtime.room(rows, length + new_tokens, exact=True)
        self._exact = True
        try:
            yield self
        finally:
            self._exact = False

    def _written(self, lengths: tuple[int, ...]) -> Written:
        import torch

        elements = self._file.cache_elements * sum(lengths)
        dtype = torch.float16 if self._cache_bits == 16 else torch.uint8
        size = int(elements * self._cache_bits) // (8 * dtype.itemsize)
        return Written(lengths, torch.empty(size, dtype=dtype, device="meta"))

    def allocated_cache_bytes(self) -> int:
        return int(self._file.cache_elements * self._cache_bits / 8 * self._runtime.cells)

    def sync(self) -> None:
        self._runtime.synchronize()

    def close(self) -> None:
        self._runtime.close()

    def weight_ledger(self) -> Sequence[StoredTensor]:
        return self._stored

    def running_bytes(self) -> int:
        return sum(entry.value_bytes + entry.scale_bytes for entry in self._stored)

    def kernels(self) -> Mapping[str, int]:
        """The decoder's matrices by type and by the backend that runs their layer; and llama.cpp's buffers."""
        assigned = (_ASSIGNED.search(line) for line in self._runtime.log)
        backends = {found[1]: found[2] for found in assigned if found}
        names: Counter[str] = Counter()
        for entry in self._linears():
            layer = re.search(r"\.(\d+)\.", entry.name)
            backend = backends.get(layer[1], "an unnamed backend") if layer else "an unnamed backend"
            names[f"{entry.storage} on {backend}"] += 1
        for line in self._runtime.log:
            if found := _BUFFER.search(line):
                names[f"{found[1]} buffer of {found[2]} MiB"] += 1
        return dict(names)

    def products(self, rows: int, mode: DecodeMode = "eager") -> Mapping[str, Product]:
        """llama.cpp multiplies quantized matrices in their stored blocks, with inputs rounded to 8 bits.

        On a GPU by its int8 instructions; those of 4-bit floats may run on faster ones.
        """
        return {entry.name.removesuffix(".weight"): self._product(entry) for entry in self._linears()}

    def _product(self, entry: StoredTensor) -> Product:
        if not entry.quantized:
            return Product("plain")
        return Product("packed", "int8" if self.device.startswith("cuda") and "FP4" not in entry.storage else None)

    def _linears(self) -> list[StoredTensor]:
        return [entry for entry in self._stored if entry.role == "linear" and in_decoder(entry.name, 2)]


def sampling(settings: Mapping[str, Any], seed: int) -> Sampling | None:
    """How texts are drawn by settings of transformers' ``generate``; None takes the likeliest token.

    Raises UnsupportedError for settings that change a text otherwise.
    """
    unmet = sorted(settings.keys() - SAMPLING)
    if settings.get("do_sample"):
        chosen = {"top_k": USUAL_TOP_K, **{name: value for name, value in settings.items() if value is not None}}
        unmet += [name for name, neutral in NEUTRAL.items() if chosen.get(name, neutral) != neutral]
        if not unmet:
            return Sampling(1, chosen.get("temperature", 1.0), chosen.get("top_p", 1.0), seed)
    if unmet:
        raise UnsupportedError(
            f"the engine llamacpp does not write by {', '.join(unmet)}; it takes the likeliest token, or draws by "
            "temperature and top_p alone, as for a task with a 'temperature' in the recipe"
        )
    return None


def imports() -> None:
    import llama_cpp  # type: ignore[import-not-found]  # noqa: F401
    from transformers import AutoTokenizer  # noqa: F401


DEFAULTS = LlamaCppParams()


def load(request: LoadRequest, params: LlamaCppParams = DEFAULTS) -> LlamaCppModel:
    """Loads a GGUF file, or the one in a cache folder. Raises UnsupportedError if it cannot be read."""
    import torch

    try:
        (file,) = weight_files(request.path)
        header = read(file)
    except (SourceError, OSError) as error:
        raise UnsupportedError(str(error)) from None
    threads = params.threads or torch.get_num_threads()
    runtime = Runtime(file, request.device, threads, request.kv_cache, params.ubatch, params.flash_attention)
    return LlamaCppModel(runtime, header, tokenizer_of(request.path), request, params)


def holds(params: LlamaCppParams, device: str, serves: bool) -> Held:
    """It has buffers for ``ubatch`` tokens and their logits; a server has a cache for all of its slots."""
    texts = (params.slots, slot_tokens(params, None)) if serves else None
    return Held(step_tokens=params.ubatch, logit_rows=params.ubatch, texts=texts, block=CELLS, cache_bits=16)


def written(source: Path, out: Path, dtype: str) -> str | None:
    """Writes an unquantized checkpoint as a GGUF file; returns a note, if any."""
    return convert(source, out / GGUF_FILE, dtype)


LLAMACPP = Engine(
    name="llamacpp",
    version=1,
    writing_version=2,  # 1 ended a text at one end token alone
    summary="GGUF files through llama.cpp, in a stack of its own; logits, tasks, prefill and decoding, and its server",
    capabilities=frozenset({"logits", "decodes", "completes"}),
    reads=(GGUF_FORMAT,),
    imports=imports,
    load=load,
    params=LlamaCppParams,
    packages=(PACKAGE, "torch", "transformers", "tokenizers", "gguf"),
    stack="llamacpp",
    convert=written,
    refuses=refuses,
    caches=dict.fromkeys(CACHES, ()),
    decode_modes={"eager": tuple(CACHES)},
    counted_by="driver",
    holds=holds,
    serve=serve,
)
