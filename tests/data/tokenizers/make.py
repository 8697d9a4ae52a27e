"""Makes the vocabularies that tokenizers are tested on, and the table of how llama.cpp cuts texts with them.

``.venv/bin/python tests/data/tokenizers/make.py`` with llama.cpp's stack made (``qharness stack create llamacpp``), and
sentencepiece 0.2.3 beside the harness. A vocabulary is some two thousand tokens, learned from the demo texts and the
sentences of probes.py.
"""

from __future__ import annotations

import ctypes
import hashlib
import io
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, GGUFWriter

HERE = Path(__file__).parent
TEXTS = HERE.parents[2] / "harness" / "text" / "data"
TABLE, DIGESTS = "llama_cpp.npz", "llama_cpp.json"
SIZE = 2000
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
MINE = ("<extra>", "  ", "\n\n", "<h1>", "</h1>")
MARKS = ("<start_of_turn>", "<end_of_turn>", "<|im_start|>", "<|im_end|>")
PRES = (
    *("default", "llama-bpe", "glm4", "dbrx", "qwen2", "qwen35", "gpt-2", "smollm", "falcon", "tekken", "gpt-4o"),
    *("deepseek-v3", "deepseek-coder", "bloom", "viking", "bailingmoe", "seed-coder"),
)
"""One name for each way of splitting text that is read."""
VARIANTS: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "sentencepiece without a prefix": ("sentencepiece", {"add_space_prefix": False, "add_bos_token": False}),
    "sentencepiece with EOS": ("sentencepiece", {"add_eos_token": True}),
    "unigram with runs of spaces": ("unigram", {"remove_extra_whitespaces": False}),
    "unigram without a prefix": ("unigram", {"remove_extra_whitespaces": False, "add_space_prefix": False}),
    "wordpiece with capitals": ("wordpiece", {"normalizer.lowercase": False}),
    "wordpiece with accents": ("wordpiece", {"normalizer.strip_accents": False}),
    "wordpiece with capitals, no accents": (
        "wordpiece",
        {"normalizer.lowercase": False, "normalizer.strip_accents": True},
    ),
    **{f"bytes split as {pre}": ("bytes", {"pre": pre}) for pre in PRES},
}
"""The same vocabularies under other flags: (vocabulary, what the file says otherwise)."""
NAMES = ("sentencepiece", "bytes", "wordpiece", "unigram")


def texts(sentences: Sequence[str]) -> list[str]:
    lines = [
        line
        for name in ("demo.txt", "demo_calibration.txt")
        for line in (TEXTS / name).read_text(encoding="utf-8").splitlines()
    ]
    return [line for line in lines if line] + list(sentences) * 3


def write(out: Path, kind: str, tokens: Sequence[str], types: Sequence[int], **keys: Any) -> None:
    """A GGUF file of a vocabulary alone. Keys are those below ``tokenizer.ggml``, a dot written as two underscores."""
    writer = GGUFWriter(out, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model(kind)
    writer.add_token_list(list(tokens))
    writer.add_token_types(list(types))
    for key, held in keys.items():
        put(writer, f"tokenizer.ggml.{key}", held)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def put(writer: GGUFWriter, key: str, held: Any) -> None:
    if isinstance(held, bool):
        writer.add_bool(key, held)
    elif isinstance(held, int):
        writer.add_uint32(key, held)
    elif isinstance(held, float):
        writer.add_float32(key, held)
    elif isinstance(held, str):
        writer.add_string(key, held)
    else:
        writer.add_array(key, held)


def revised(file: Path, out: Path, changes: Mapping[str, object]) -> None:
    """A vocabulary's file with other values below ``tokenizer.ggml``; None takes a key away."""
    reader = GGUFReader(file)
    held = {
        name.removeprefix("tokenizer.ggml."): field.contents()
        for name, field in reader.fields.items()
        if name.startswith("tokenizer.ggml.")
    }
    held = {key: value for key, value in {**held, **changes}.items() if value is not None}
    kind = held.pop("model")
    write(out, str(kind), held.pop("tokens", []), held.pop("token_type", []), **held)


def sentencepiece(folder: Path, lines: Sequence[str], kind: str) -> tuple[list[str], list[float], list[int]]:
    """Pieces, scores and types of a model that sentencepiece learned."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type=kind,
        vocab_size=SIZE,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        control_symbols=MARKS,
        user_defined_symbols=[text for text in MINE if text.isascii()],
        num_threads=1,
        minloglevel=2,
        byte_fallback=kind == "bpe",
    )
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ids = range(pieces.get_piece_size())
    types = [
        UNKNOWN if pieces.is_unknown(index)
        else CONTROL if pieces.is_control(index)
        else BYTE if pieces.is_byte(index)
        else USER_DEFINED if pieces.id_to_piece(index).replace("▁", " ") in MINE
        else NORMAL
        for index in ids
    ]  # fmt: skip
    texts = [pieces.id_to_piece(index) for index in ids]
    texts = [text.replace("▁", " ") if kind == USER_DEFINED else text for text, kind in zip(texts, types, strict=True)]
    return texts, [pieces.get_score(index) for index in ids], types


def make_sentencepiece(out: Path, lines: Sequence[str]) -> None:
    tokens, scores, types = sentencepiece(out.parent, lines, "bpe")
    tokens += ["[PAD]", "▁▁", "▁▁▁", "▁▁▁▁"]  # as Gemma's and Llama's files hold them
    types += [UNUSED, NORMAL, NORMAL, NORMAL]
    scores += [-10000.0, -1e9, -1e9, -1e9]
    write(
        out,
        "llama",
        tokens,
        types,
        scores=scores,
        bos_token_id=1,
        eos_token_id=2,
        unknown_token_id=0,
        add_bos_token=True,
    )


def make_unigram(out: Path, lines: Sequence[str]) -> None:
    tokens, scores, types = sentencepiece(out.parent, lines, "unigram")
    flags = {"add_space_prefix": True, "remove_extra_whitespaces": True, "add_bos_token": True, "add_eos_token": True}
    write(out, "t5", tokens, types, scores=scores, bos_token_id=1, eos_token_id=2, unknown_token_id=0, **flags)


def make_bytes(out: Path, lines: Sequence[str]) -> None:
    """With no token for some bytes, as in the files of SmolLM2 and Falcon."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set("ĂąĳŁ"))
    special = ["<|endoftext|>", *MARKS]
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE - len(MINE), special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    learned.train_from_iterator(lines, trainer)
    model = json.loads(learned.to_str())["model"]
    tokens = [*sorted(model["vocab"], key=model["vocab"].get), *MINE]
    merges = [" ".join(pair) for pair in model["merges"]]
    types = [CONTROL] * len(special) + [NORMAL] * (len(tokens) - len(special) - len(MINE)) + [USER_DEFINED] * len(MINE)
    write(out, "gpt2", tokens, types, merges=merges, pre="smollm", bos_token_id=0, eos_token_id=0, add_bos_token=True)


def make_wordpiece(out: Path, lines: Sequence[str]) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    learned = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learned.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    learned.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=SIZE, special_tokens=special, show_progress=False)
    both = [*lines, *(line.lower() for line in lines)]
    learned.train_from_iterator(both, trainer)
    held = learned.get_vocab()
    tokens = sorted(held, key=lambda text: held[text])
    shown = [
        text if text in special else text.removeprefix("##") if text.startswith("##") else f"▁{text}" for text in tokens
    ]  # as llama.cpp's converter writes them
    types = [CONTROL] * len(special) + [NORMAL] * (len(tokens) - len(special))
    ids = {"padding_token_id": 0, "unknown_token_id": 1, "bos_token_id": 2, "seperator_token_id": 3, "mask_token_id": 4}
    write(out, "bert", shown, types, **ids)


def every(folder: Path) -> Iterator[tuple[str, Path]]:
    """The names and files of all vocabularies, those under other flags written to the folder."""
    for name in NAMES:
        yield name, HERE / f"{name}.gguf"
    for index, (name, (vocabulary, changes)) in enumerate(VARIANTS.items()):
        revised(HERE / f"{vocabulary}.gguf", folder / f"{index}.gguf", changes)
        yield name, folder / f"{index}.gguf"


class LlamaCpp:
    """llama.cpp's own tokenizer, of a file's vocabulary alone."""

    def __init__(self, file: Path, api: Any) -> None:
        self._api = api
        settings = api.llama_model_default_params()
        settings.vocab_only = True
        self._model = api.llama_model_load_from_file(str(file).encode(), settings)
        assert self._model, f"llama.cpp does not load {file}"
        self._vocabulary = api.llama_model_get_vocab(self._model)
        self._room = (api.llama_token * 65536)()

    def __call__(self, text: str, around: bool, special: bool = True) -> list[int]:
        """The ids of a text: with BOS and EOS ``around`` it, and with the ``special`` tokens in it cut out."""
        content = text.encode()
        count = self._api.llama_tokenize(
            self._vocabulary, content, len(content), self._room, len(self._room), around, special
        )
        assert count >= 0
        return list(self._room[:count])

    def close(self) -> None:
        self._api.llama_model_free(self._model)


def step(name: str) -> int:
    """Of how many texts one is cut: all by a vocabulary, a third of them by one under other flags."""
    return 1 if name in NAMES else 3


def packed(ids: Iterable[Sequence[int]]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Rows of ids as one array, and the rows' lengths."""
    rows = list(ids)
    return np.array([each for row in rows for each in row], dtype="<u2"), np.array([len(row) for row in rows], "<u2")


def digest(ids: Iterable[Sequence[int]]) -> str:
    values, lengths = packed(ids)
    return hashlib.sha256(values.tobytes() + b"|" + lengths.tobytes()).hexdigest()


def main() -> None:
    sys.path.insert(0, str(HERE))
    from probes import SENTENCES, strings

    lines = texts(SENTENCES)
    for name in NAMES:
        globals()[f"make_{name}"](HERE / f"{name}.gguf", lines)
    import llama_cpp  # type: ignore[import-not-found]

    quiet = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    arrays, digests = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, file in every(Path(folder)):
            cut = LlamaCpp(file, llama_cpp)
            ids = [cut(text, True) for text in strings()[:: step(name)]]
            digests[name] = digest(ids)
            if name in NAMES:
                arrays[f"{name} ids"], arrays[f"{name} lengths"] = packed(ids)
    np.savez_compressed(HERE / TABLE, allow_pickle=False, **arrays)
    (HERE / DIGESTS).write_text(json.dumps(digests, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
