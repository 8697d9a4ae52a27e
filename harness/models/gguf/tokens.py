"""A GGUF file's tokens as llama.cpp interprets them: with types corrected and missing flags filled in."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.core.foreign import shown
from harness.errors import SourceError, UnsupportedError
from harness.models.gguf import reader
from harness.models.gguf.header import NO_TOKENIZER, refusal
from harness.models.gguf.reader import GgufHeader

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""The format's token types; 0 is undefined."""
_OWN = "tokenizer.ggml."
"""What the keys of a tokenizer begin with."""
SPECIAL = (UNKNOWN, CONTROL, USER_DEFINED)
"""The types that are matched in a text before everything else."""
_DEFAULTS: Mapping[str, Mapping[str, int]] = {
    "llama": {"bos": 1, "eos": 2, "unk": 0},
    "bert": {"bos": 101, "unk": 100, "sep": 102, "pad": 0, "mask": 103},
    "t5": {"eos": 1, "unk": 2, "pad": 0},
    "gpt2": {},
}
"""llama.cpp's default ids if a file names none, by ``tokenizer.ggml.model``."""
_IDS = {
    **{"bos": "bos", "eos": "eos", "unk": "unknown", "sep": "seperator", "pad": "padding", "mask": "mask"},
    **{"fim_pre": "fim_pre", "fim_suf": "fim_suf", "fim_mid": "fim_mid", "fim_pad": "fim_pad"},
    **{"fim_rep": "fim_rep", "fim_sep": "fim_sep"},
}
"""The format's own names, including its misspelling of "separator"."""
_FORMER = {"fim_pre": "prefix", "fim_suf": "suffix", "fim_mid": "middle"}
"""Their names in older files."""
_ENDS = frozenset(
    {
        *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>"),
        *("<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<eos>"),
        *("<end_of_utterance>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~["),
    }
)
"""Texts that llama.cpp treats as the end of a turn: they are control tokens, whatever their file says."""
_FILLING: Mapping[str, Collection[str]] = {
    "fim_pre": (
        *("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>"),
        *("<|code_prefix|>", "<|prefix|>"),
    ),
    "fim_suf": (
        *("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>"),
        *("<|code_suffix|>", "<|suffix|>"),
    ),
    "fim_mid": (
        *("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>"),
        *("<|code_middle|>", "<|middle|>"),
    ),
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}
"""Texts that llama.cpp treats as fill-in-the-middle marks if the file does not name them: one of each is control."""
_HARMONY = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")
_NOT_AT_PHI_3 = ("<unk>", "<s>", "<|endoftext|>")


@dataclass(frozen=True)
class Tokens:
    """A vocabulary as llama.cpp uses it.

    ``kind`` is ``tokenizer.ggml.model``; ``types`` are the format's numbers, corrected; ``stripping`` are the special
    tokens that absorb the white space after them; ``ids`` holds bos, eos, unk, sep, pad and mask if they exist.
    """

    kind: str
    pre: str
    texts: tuple[str, ...]
    types: tuple[int, ...]
    scores: tuple[float, ...]
    merges: tuple[str, ...]
    ids: Mapping[str, int]
    bos: bool | None
    eos: bool
    space_prefix: bool
    merges_spaces: bool
    lowercase: bool
    strips_accents: bool
    chat_template: str | None = None
    stripping: frozenset[str] = field(default_factory=frozenset)

    def text(self, name: str) -> str | None:
        """The text of a token in ``ids``."""
        return self.texts[self.ids[name]] if name in self.ids else None


def read_tokens(file: Path) -> Tokens | None:
    """None for a file without a tokenizer.

    Raises UnsupportedError for a vocabulary that cannot be read correctly, SourceError for a damaged file.
    """
    found = reader.read(file)
    kind = found.text(f"{_OWN}model")
    if kind is None or kind in NO_TOKENIZER:
        return None
    reason = refusal(found)
    if reason is not None:
        raise UnsupportedError(f"{file.name}: {reason}")
    texts = tuple(text or f"[EMPTY_{index}]" for index, text in enumerate(found.texts(f"{_OWN}tokens") or ()))
    if len(set(texts)) != len(texts):
        raise UnsupportedError(f"{file.name}: two of its tokens are one text; llama.cpp does not read it either")
    ids = _ids(found, kind, len(texts))
    lowercase = _flag(found, "normalizer.lowercase", True)
    types = corrected(texts, _types(found, len(texts)), ids)
    bos = found.flag(f"{_OWN}add_bos_token")
    return Tokens(
        kind=kind,
        pre=found.text(f"{_OWN}pre") or "default",
        texts=texts,
        types=tuple(types),
        scores=tuple(map(float, found.numbers(f"{_OWN}scores") or ())),
        merges=tuple(found.texts(f"{_OWN}merges") or ()),
        ids=ids,
        bos=(None if kind == "gpt2" else kind in ("llama", "bert")) if bos is None else bos,
        eos=_flag(found, "add_eos_token", kind == "t5"),
        space_prefix=_flag(found, "add_space_prefix", kind == "llama"),
        merges_spaces=_flag(found, "remove_extra_whitespaces", False),
        lowercase=lowercase,
        strips_accents=_flag(found, "normalizer.strip_accents", lowercase),
        chat_template=found.text("tokenizer.chat_template"),
        stripping=_stripping(found.text("general.name") or "", texts, types),
    )


def _flag(found: GgufHeader, key: str, otherwise: bool) -> bool:
    given = found.flag(f"{_OWN}{key}")
    return otherwise if given is None else given


def _types(found: GgufHeader, count: int) -> list[int]:
    """The type of each token. Raises SourceError if a type is unknown or one is missing."""
    given = found.numbers(f"{_OWN}token_type")
    if given is None:
        return [NORMAL] * count
    if len(given) != count or not set(given) <= set(range(7)):
        raise SourceError(f"{shown(found.file)}: {_OWN}token_type must give a type from 0 to 6 for each token")
    return [int(each) for each in given]


def _ids(found: GgufHeader, kind: str, size: int) -> dict[str, int]:
    """The token of each name: the file's own, or llama.cpp's default if the file names none that exists."""
    ids = {name: index for name, index in _DEFAULTS[kind].items() if index < size}
    for name, key in (*_IDS.items(), *_FORMER.items()):
        given = found.metadata.get(f"{_OWN}{key}_token_id")
        if type(given) is int and 0 <= given < size:
            ids[name] = given
    return ids


def corrected(texts: Sequence[str], types: Sequence[int], ids: Mapping[str, int]) -> list[int]:
    """The token types, as llama.cpp corrects them by the tokens' texts.

    Raises UnsupportedError if llama.cpp's choice of a mark depends on the order of its hash table.
    """
    places = {text: index for index, text in enumerate(texts)}
    result = list(types)
    for name, candidates in _FILLING.items():
        present = [places[text] for text in candidates if text in places]
        if name in ids or all(types[index] in SPECIAL for index in present):
            continue
        if len(present) > 1:
            quoted = " and ".join(repr(texts[index]) for index in present)
            raise UnsupportedError(f"{quoted} may each be its {name} token; name tokenizer.ggml.{name}_token_id in it")
        result[present[0]] = CONTROL
    for text in _ENDS & places.keys():
        result[places[text]] = CONTROL
    for text in _HARMONY:
        if text in places:
            result[places[text]] = USER_DEFINED
    calls = "<|call|>" in places or "<|calls|>" in places
    if "<|end|>" in places and calls and ("<|flush|>" in places or {"<|return|>", "<|call|>"} <= places.keys()):
        result[places["<|end|>"]] = USER_DEFINED
    if "</s>" in places and "<|tool_response>" in places:
        result[places["</s>"]] = NORMAL
    return result


def _stripping(name: str, texts: Sequence[str], types: Sequence[int]) -> frozenset[str]:
    """The special tokens that absorb white space in Phi-3's models, which llama.cpp recognizes only by model name."""
    if not any(known in name.lower() for known in ("phi-3", "phi3")):
        return frozenset()
    special = {text for text, kind in zip(texts, types, strict=True) if kind in SPECIAL}
    return frozenset(special.difference(_NOT_AT_PHI_3))
