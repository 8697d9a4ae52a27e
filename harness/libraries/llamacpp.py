"""llama.cpp through llama-cpp-python's bindings of its C interface: token ids in, logits out.

By default the KV cache is float16 and llama.cpp chooses the attention implementation, as in its own programs.
Weights are read into memory rather than mapped, so that they count as the process's own memory.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.core.identity import KvCache
from harness.errors import HarnessError, UnsupportedError

if TYPE_CHECKING:
    import torch

PACKAGE = "llama-cpp-python"
BATCH_TOKENS = 512
"""Tokens computed per call by default; llama.cpp's own physical batch size."""
FLASH_ATTENTION: Mapping[str, str] = {"auto": "AUTO", "enabled": "ENABLED", "disabled": "DISABLED"}
"""llama.cpp's names for when to use flash attention, by the recipe's names."""
CELLS = 256
"""llama.cpp pads the cache's length to a multiple of this."""
WORST_LINES = 3
CACHES: Mapping[KvCache, str] = {"model": "F16", "int8": "Q8_0", "int4": "Q4_0"}
"""llama.cpp's types of keys and values, by the recipe's names."""
_ERROR, _CONTINUED = 4, 5
_START, _END = -1, -1
"""Positions that llama.cpp takes for the first and for beyond the last."""


@dataclass(frozen=True)
class Piece:
    """Tokens of one sequence, starting at a position, and whether to return logits for all of them or only the last."""

    sequence: int
    start: int
    tokens: Sequence[int]
    every: bool = False


@cache
def lines() -> list[tuple[int, str]]:
    """Collects llama.cpp's log from now on, as (level, text); only errors are printed."""
    import llama_cpp  # type: ignore[import-not-found]

    entries: list[tuple[int, str]] = []

    def keep(level: int, text: bytes, _: object) -> None:
        shown = text.decode("utf-8", errors="replace")
        if level == _CONTINUED and entries:
            entries[-1] = (entries[-1][0], entries[-1][1] + shown)
        else:
            entries.append((level, shown))

    callback = llama_cpp.llama_log_callback(keep)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    _KEPT.append(callback)
    return entries


_KEPT: list[object] = []
"""References that keep the library's callbacks from being garbage-collected."""


def complaints(since: int) -> str:
    """The last errors that llama.cpp logged since then, in one line."""
    errors = [text.strip() for level, text in lines()[since:] if level == _ERROR]
    return "; ".join(errors[-WORST_LINES:]) or "llama.cpp does not say why"


class Runtime:
    """A loaded GGUF model. It has one context at a time, sized for the sequences and tokens last requested."""

    def __init__(
        self,
        file: Path,
        device: str,
        threads: int,
        kv_cache: KvCache = "model",
        batch_tokens: int = BATCH_TOKENS,
        flash_attention: str = "auto",
    ) -> None:
        """Each call computes ``batch_tokens`` tokens; ``flash_attention`` is a key of FLASH_ATTENTION.

        Raises UnsupportedError, with llama.cpp's message, if it cannot load the file.
        """
        import llama_cpp

        self._api = llama_cpp
        self.threads = threads
        self._batch_tokens = batch_tokens
        self._flash_attention = getattr(llama_cpp, f"LLAMA_FLASH_ATTN_TYPE_{FLASH_ATTENTION[flash_attention]}")
        if kv_cache not in CACHES:
            raise UnsupportedError(f"llama.cpp keeps no {kv_cache} key-value cache")
        self._cache_type = _ggml_type(CACHES[kv_cache])
        self._context: Any = None
        self._rows = self._length = 0
        since = len(lines())
        llama_cpp.llama_backend_init()
        settings = llama_cpp.llama_model_default_params()
        settings.n_gpu_layers = 0 if device == "cpu" else -1
        settings.load_mode = llama_cpp.LLAMA_LOAD_MODE_NONE
        if device != "cpu" and not llama_cpp.llama_supports_gpu_offload():
            raise UnsupportedError("this build of llama.cpp runs on the CPU alone; build its stack with CUDA")
        self._model = llama_cpp.llama_model_load_from_file(str(file).encode(), settings)
        if not self._model:
            raise UnsupportedError(f"{file.name}: llama.cpp does not load it: {complaints(since)}")
        self.log = tuple(text.strip() for _, text in lines()[since:])
        self._vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self.vocabulary = int(llama_cpp.llama_vocab_n_tokens(self._vocabulary))
        self.most_rows = int(llama_cpp.llama_max_parallel_sequences())

    def close(self) -> None:
        """Frees the model and its context; the object cannot be used afterwards."""
        self._drop()
        if self._model:
            self._api.llama_model_free(self._model)
            self._model = None

    def _drop(self) -> None:
        if self._context:
            self._api.llama_free(self._context)
            self._context = None

    def room(self, rows: int, length: int, exact: bool = False) -> None:
        """Empties the cache; makes a new one if it cannot hold ``rows`` sequences of ``length`` tokens.

        ``exact`` makes one of exactly that size. Raises UnsupportedError for more sequences than llama.cpp supports.
        """
        length = -(-length // CELLS) * CELLS
        fits = (rows, length) == (self._rows, self._length) if exact else rows <= self._rows and length <= self._length
        if self._context and fits:
            self.empty()
            return
        if rows > self.most_rows:
            raise UnsupportedError(f"llama.cpp keeps {self.most_rows} sequences at most; {rows} were asked for")
        self._drop()
        settings = self._api.llama_context_default_params()
        settings.n_ctx = rows * length
        settings.n_seq_max = rows
        settings.n_batch = settings.n_ubatch = self._batch_tokens
        settings.flash_attn_type = self._flash_attention
        settings.n_threads = settings.n_threads_batch = self.threads
        settings.type_k = settings.type_v = self._cache_type
        settings.kv_unified = False
        since = len(lines())
        self._context = self._api.llama_init_from_model(self._model, settings)
        if not self._context:
            raise UnsupportedError(f"llama.cpp makes no context of {rows} × {length} tokens: {complaints(since)}")
        self._rows, self._length = rows, length

    @contextmanager
    def own_cache(self) -> Iterator[None]:
        """Keeps keys and values in float16 within this context, whatever the configured cache type."""
        kept, own = self._cache_type, _ggml_type(CACHES["model"])
        if kept != own:
            self._drop()
        self._cache_type = own
        try:
            yield
        finally:
            self._cache_type = kept
            if kept != own:
                self._drop()

    @property
    def cells(self) -> int:
        """How many tokens the cache has room for, over all sequences."""
        return self._rows * self._length if self._context else 0

    def empty(self) -> None:
        """Removes all tokens from the cache; its size stays."""
        self._api.llama_memory_clear(self._memory, False)

    def forget(self, sequence: int) -> None:
        """Removes all tokens of a sequence from the cache."""
        self._api.llama_memory_seq_rm(self._memory, sequence, _START, _END)

    def move(self, sequence: int, to: int) -> None:
        """Gives the tokens of a sequence to another one, which has none."""
        self._api.llama_memory_seq_cp(self._memory, sequence, to, _START, _END)
        self.forget(sequence)

    @property
    def _memory(self) -> Any:
        return self._api.llama_get_memory(self._context)

    def ends(self, token: int) -> bool:
        """Whether a text ends with this token, as in llama.cpp's own programs: end of text, of a turn, and the like."""
        return bool(self._api.llama_vocab_is_eog(self._vocabulary, token))

    def feed(self, pieces: Sequence[Piece]) -> torch.Tensor:
        """Appends tokens to their sequences; returns the requested logits, (n, vocabulary) float32, in order."""
        import torch

        tokens = np.concatenate([np.asarray(piece.tokens, dtype=np.int32) for piece in pieces])
        counts = [len(piece.tokens) for piece in pieces]
        positions = np.concatenate([np.arange(p.start, p.start + n) for p, n in zip(pieces, counts, strict=True)])
        sequences = np.repeat([piece.sequence for piece in pieces], counts)
        wanted = np.repeat([piece.every for piece in pieces], counts).astype(np.int8)
        wanted[np.cumsum(counts) - 1] = 1
        if positions.max() >= self._length:
            raise HarnessError(f"position {positions.max()} in a cache of {self._length} tokens")
        out = torch.empty(int(wanted.sum()), self.vocabulary)
        done = 0
        for low in range(0, len(tokens), self._batch_tokens):
            part = slice(low, low + self._batch_tokens)
            count = int(wanted[part].sum())
            self._decode(tokens[part], positions[part], sequences[part], wanted[part])
            if count:
                found = self._api.llama_get_logits(self._context)
                rows = np.ctypeslib.as_array(found, shape=(count * self.vocabulary,)).reshape(count, self.vocabulary)
                out[done : done + count] = torch.from_numpy(rows)
                done += count
        return out

    def _decode(self, tokens: Any, positions: Any, sequences: Any, wanted: Any) -> None:
        """One call of llama_decode; the arrays must live until it returns."""
        count = len(tokens)
        positions, sequences = positions.astype(np.int32), sequences.astype(np.int32)
        ones = np.ones(count, dtype=np.int32)
        addresses = sequences.ctypes.data + 4 * np.arange(count, dtype=np.uintp)
        batch = self._api.llama_batch(
            count,
            tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            None,
            positions.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            ones.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            addresses.ctypes.data_as(ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
            wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )
        since = len(lines())
        code = self._api.llama_decode(self._context, batch)
        if code:
            raise HarnessError(f"llama_decode ended with {code}: {complaints(since)}")

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits of rows of tokens (batch, length), all computed together: (batch, length, vocabulary) float32."""
        import torch

        groups = [self._group(rows) for rows in torch.split(tokens, self.most_rows)]
        return groups[0] if len(groups) == 1 else torch.cat(groups)

    def _group(self, tokens: torch.Tensor) -> torch.Tensor:
        rows, length = tokens.shape
        self.room(rows, length)
        found = self.feed([Piece(row, 0, ids, every=True) for row, ids in enumerate(tokens.tolist())])
        return found.view(rows, length, self.vocabulary)

    def synchronize(self) -> None:
        if self._context:
            self._api.llama_synchronize(self._context)


def _ggml_type(name: str) -> int:
    """ggml's number for a type, by name."""
    from gguf import GGMLQuantizationType

    return int(GGMLQuantizationType[name])


def quantize(
    source: Path,
    out: Path,
    file_type: str,
    threads: int,
    plain: str | None,
    overrides: Iterable[tuple[str, str]],
    imatrix: Mapping[str, np.ndarray[Any, Any]] | None,
) -> None:
    """Quantizes a float GGUF with llama.cpp. Raises UnsupportedError, with llama.cpp's message, if it fails.

    ``plain`` is the type of embeddings and head, or None for llama.cpp's own choice; ``overrides`` maps regular
    expressions of tensor names to types; ``imatrix`` maps tensor names to the mean squares of their inputs
    (float32, one per column), or is None.
    """
    import llama_cpp

    settings = llama_cpp.llama_model_quantize_default_params()
    settings.nthread = threads
    settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{file_type}")
    if plain is not None:
        settings.output_tensor_type = settings.token_embedding_type = _ggml_type(plain)
    named = [(pattern.encode(), _ggml_type(kind)) for pattern, kind in overrides]
    held: list[object] = []
    if named:
        table = (llama_cpp.llama_model_tensor_override * (len(named) + 1))()
        for entry, (pattern, kind) in zip(table, named, strict=False):
            entry.pattern, entry.type = pattern, kind
        settings.tt_overrides = table
        held.append(table)
    if imatrix:
        entries = (llama_cpp.llama_model_imatrix_data * (len(imatrix) + 1))()
        for entry, (name, values) in zip(entries, imatrix.items(), strict=False):
            entry.name, entry.size = name.encode(), values.size
            entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        settings.imatrix = entries
        held.append(entries)
    since = len(lines())
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(settings))
    if code:
        out.unlink(missing_ok=True)
        raise UnsupportedError(f"llama.cpp does not quantize to {file_type}: {complaints(since)}")
