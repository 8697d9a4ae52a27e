"""The tokenizer of a model: its folder's own, or one built from a GGUF file's metadata.

The built tokenizer splits a text, including special tokens in it, as llama.cpp does with the same file
(src/llama-vocab.cpp). There are two exceptions: of overlapping special tokens, ``tokenizers`` picks the first and
llama.cpp the longest; and after Phi-3's special tokens, ``tokenizers`` drops all white space and llama.cpp only ASCII
white space.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import UnsupportedError
from harness.models.gguf.splits import SINCE_UNICODE_16, SPLITS, known_to_unicode_15
from harness.models.gguf.tokens import (
    BYTE,
    CONTROL,
    NORMAL,
    SPECIAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Tokens,
    read_tokens,
)
from harness.models.headers import has_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NAMED = ("bos", "eos", "unk", "sep", "pad", "mask")
SPACE = "▁"
_BYTES = tuple(f"<0x{value:02X}>" for value in range(256))
_HANGUL = tuple((chr(0x1100 + lead), 0xAC00 + 588 * lead, 0xAC00 + 588 * lead + 587) for lead in range(19))
"""Each leading consonant, and the first and last syllable that begin with it."""
_ALWAYS = 10**6
"""Maximum characters of a word: effectively unlimited."""


def tokenizer_of(path: Path) -> Any | None:
    """The tokenizer from a folder's own files or a GGUF file's metadata; None if there is none."""
    from transformers import AutoTokenizer

    if path.is_file():
        return file_tokenizer(path)
    return AutoTokenizer.from_pretrained(path) if has_tokenizer(path) else None


def file_tokenizer(file: Path) -> Any | None:
    """The tokenizer in a GGUF file; None if it holds none.

    Raises UnsupportedError for one that cannot be built to split text as llama.cpp does.
    """
    from transformers import PreTrainedTokenizerFast

    tokens = read_tokens(file)
    if tokens is None:
        return None
    try:
        made = PreTrainedTokenizerFast(
            tokenizer_object=backend(tokens),
            clean_up_tokenization_spaces=False,
            **{f"{name}_token": text for name in NAMED if (text := tokens.text(name)) is not None},
        )
    except UnsupportedError as error:
        raise UnsupportedError(f"{file.name}: {error}") from None
    made.chat_template = tokens.chat_template
    return made


def backend(tokens: Tokens) -> Tokenizer:
    """The vocabulary's tokenizer, for the ``tokenizers`` library."""
    from tokenizers import AddedToken

    made = {"llama": _by_scores, "gpt2": _by_merges, "bert": _by_longest, "t5": _by_likelihood}[tokens.kind](tokens)
    added = [
        AddedToken(text, special=kind in (CONTROL, UNKNOWN), normalized=False, rstrip=text in tokens.stripping)
        for text, kind in zip(tokens.texts, tokens.types, strict=True)
        if kind in SPECIAL
    ]
    for special, group in groupby(added, key=lambda token: token.special):
        (made.add_special_tokens if special else made.add_tokens)(list(group))
    _put_around(made, tokens)
    return made


def _put_around(made: Tokenizer, tokens: Tokens) -> None:
    """Adds BOS and EOS around a text, if the file or the kind of tokenizer requires it. WordPiece always adds both."""
    from tokenizers import processors

    bos = SPLITS[tokens.pre].bos if tokens.bos is None else tokens.bos
    first, last = ("bos", "sep") if tokens.kind == "bert" else ("bos" if bos else None, "eos" if tokens.eos else None)
    for name in (first, last):
        if name is not None and name not in tokens.ids:
            raise UnsupportedError(f"it puts {name.upper()} around a text and does not say which token that is")
    before, behind = (None if name is None else tokens.text(name) for name in (first, last))
    around = [(text, tokens.ids[name]) for text, name in ((before, first), (behind, last)) if text and name]
    if around:
        single = [*([before] if before else []), "$A", *([behind] if behind else [])]
        pair = [*single, *([before] if before else []), "$B", *([behind] if behind else [])]
        made.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=around)


def _by_scores(tokens: Tokens) -> Tokenizer:
    """Sentencepiece's byte pair encoding: of all neighbours that form a token, the best-scored pair merges first.

    A character that is not a token becomes its bytes.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers

    vocabulary = {text: index for index, text in enumerate(tokens.texts)}
    lacking = [text for text in _BYTES if text not in vocabulary]
    if lacking:
        raise UnsupportedError(f"it lacks the tokens of {len(lacking)} bytes, {lacking[0]} the first; convert it anew")
    made = Tokenizer(models.BPE(vocabulary, scored_merges(tokens), byte_fallback=True, fuse_unk=False))
    steps = [normalizers.Replace(" ", SPACE)]
    made.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), *steps] if tokens.space_prefix else steps)
    parts = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*parts, *([decoders.Strip(" ", 1, 0)] if tokens.space_prefix else [])])
    return made


def scored_merges(tokens: Tokens) -> list[tuple[str, str]]:
    """Every pair that forms a token, the best score first.

    Among equal scores llama.cpp goes from left to right and extends what it just merged, which equals sorting by the
    longest left parts.
    """
    held = set(tokens.texts)
    pairs: list[tuple[float, int, int, str, str]] = []
    for text, score in zip(tokens.texts, tokens.scores, strict=False):
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in held and right in held:
                pairs.append((-score, -len(left), -len(right), left, right))
    pairs.sort(key=lambda pair: pair[:3])
    return [(left, right) for *_, left, right in pairs]


def _by_merges(tokens: Tokens) -> Tokenizer:
    """Byte pair encoding with a list of merges, on a text that has already been split."""
    from tokenizers import Tokenizer, decoders, models

    split = SPLITS[tokens.pre]
    vocabulary = {text: index for index, text in enumerate(tokens.texts)}
    merges = list(dict.fromkeys(_pairs(tokens.merges)))
    for left, right in merges:
        if not {left, right, left + right} <= vocabulary.keys():
            raise UnsupportedError(
                f"its merge of {left!r} and {right!r} uses or gives a token that its vocabulary lacks; convert it anew"
            )
    made = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=split.whole))
    made.pre_tokenizer = pre_tokenizer(tokens.pre, tokens.texts)
    made.decoder = decoders.ByteLevel()
    return made


def pre_tokenizer(pre: str, texts: Sequence[str]) -> Any:
    """Splits a text, converts it to bytes, and drops bytes that are not tokens of the vocabulary."""
    from tokenizers import Regex, pre_tokenizers

    lacking = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set(texts))
    dropped = "[" + "".join(rf"\x{{{ord(character):X}}}" for character in lacking) + "]"
    return pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(each), "isolated") for each in SPLITS[pre].oniguruma()),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            *([pre_tokenizers.Split(Regex(dropped), "removed")] if lacking else []),
        ]
    )


def _pairs(merges: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The two parts of each merge, separated at the first space that is not its first character."""
    for merge in merges:
        cut = merge.find(" ", 1)
        if cut > 0:
            yield merge[:cut], merge[cut + 1 :]


def _by_longest(tokens: Tokens) -> Tokenizer:
    """WordPiece: repeatedly takes the longest token at the start of the rest of a word; the word's start is marked."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    unknown = tokens.text("unk")
    if unknown is None:
        raise UnsupportedError("it does not say which token stands for what is unknown")
    vocabulary = {text: index for index, text in enumerate(tokens.texts)}
    model = models.WordPiece(
        vocabulary, unk_token=unknown, continuing_subword_prefix="", max_input_chars_per_word=_ALWAYS
    )
    made = Tokenizer(model)
    made.normalizer = normalizers.Sequence(list(_word_steps(tokens)))
    made.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    made.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return made


def _word_steps(tokens: Tokens) -> Iterator[Any]:
    """llama.cpp's normalization before WordPiece, character by character.

    It keeps only the first part of a character that decomposes, including Hangul. In the result, one space and a mark
    precede each word.
    """
    from tokenizers import Regex, normalizers

    def replaced(expression: str, by: str) -> Any:
        return normalizers.Replace(Regex(known_to_unicode_15(expression)), by)

    if tokens.strips_accents:
        yield from (replaced(rf"[\x{{{first:X}}}-\x{{{last:X}}}]", lead) for lead, first, last in _HANGUL)
        yield normalizers.NFD()
    yield replaced(r"\s+", " ")
    yield replaced(r"[\p{Cc}\p{Cf}\p{Co}\x{FFFD}]+", "")
    if tokens.strips_accents:
        yield replaced(r"\p{M}+", "")
    alone = (
        r"[\p{P}$+<=>^`|~\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{20000}-\x{2A6DF}\x{2A700}-\x{2B73F}\x{2B740}-\x{2B81F}"
        r"\x{2B920}-\x{2CEAF}\x{F900}-\x{FAFF}\x{2F800}-\x{2FA1F}]"
    )
    yield replaced(rf"(?={alone})|(?<={alone})", " ")
    yield replaced(r"\A +| +\z", "")
    yield replaced(" +", " ")
    if tokens.lowercase:
        newer = rf"[{SINCE_UNICODE_16}\x{{A7CE}}\x{{A7D2}}\x{{A7D4}}\x{{16EA0}}-\x{{16EB8}}]"
        yield replaced(newer, "\uffff")  # llama.cpp has no lower case of these, and no vocabulary has them
        yield normalizers.Replace("İ", "i")
        yield normalizers.Lowercase()
    yield normalizers.Prepend(" ")
    yield normalizers.Replace(" ", f" {SPACE}")


def _by_likelihood(tokens: Tokens) -> Tokenizer:
    """Sentencepiece's unigram model: the likeliest segmentation of a text, by the sum of its tokens' scores."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    normal = [score for score, kind in zip(tokens.scores, tokens.types, strict=False) if kind == NORMAL]
    if not normal or "unk" not in tokens.ids:
        raise UnsupportedError("its tokenizer has no tokens of its own, or none for what is unknown; convert it anew")
    least = min(normal)
    pieces = []
    for text, score, kind in zip(tokens.texts, tokens.scores, tokens.types, strict=False):
        if kind == BYTE or (kind == USER_DEFINED and not text.isascii()) or (kind == UNUSED and score < least):
            raise UnsupportedError(f"its token {text!r} is read by llama.cpp in a way that cannot be followed")
        pieces.append((text, {NORMAL: score, UNUSED: score, USER_DEFINED: 0.0}.get(kind, least)))
    made = Tokenizer(models.Unigram(pieces, unk_id=tokens.ids["unk"], byte_fallback=False))
    made.normalizer = normalizers.Sequence(list(_space_steps(tokens)))
    made.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return made


def _space_steps(tokens: Tokens) -> Iterator[Any]:
    """The unigram model's spaces: runs collapsed to one if the file says so, and one before the first word."""
    from tokenizers import Regex, normalizers

    if tokens.merges_spaces:
        yield normalizers.Replace(Regex(r"\A +| +\z"), "")
        yield normalizers.Replace(Regex(" +"), " ")
        yield normalizers.Prepend(" ")
    elif tokens.space_prefix:
        yield normalizers.Replace(Regex(r"\A(?= *[^ ])"), " ")
    yield normalizers.Replace(" ", SPACE)
