"""How llama.cpp splits a text before it merges bytes, for each possible value of ``tokenizer.ggml.pre``.

The expressions are those of llama.cpp's src/llama-vocab.cpp, written for Oniguruma, the regular expression library of
``tokenizers``. llama.cpp implements Unicode 15.1, Oniguruma 16: in llama.cpp newer characters are not letters, numbers,
marks, punctuation or symbols.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

SINCE_UNICODE_16 = (
    r"\x{897}\x{1B4E}-\x{1B4F}\x{1B7F}\x{1C89}-\x{1C8A}\x{2427}-\x{2429}\x{31E4}-\x{31E5}\x{A7CB}-\x{A7CD}"
    r"\x{A7DA}-\x{A7DC}\x{105C0}-\x{105F3}\x{10D40}-\x{10D8F}\x{10EC2}-\x{10EFC}\x{11380}-\x{113E2}"
    r"\x{116D0}-\x{116E3}\x{11BC0}-\x{11BF9}\x{11F5A}\x{13460}-\x{143FA}\x{16100}-\x{16139}\x{16D40}-\x{16D79}"
    r"\x{18CFF}\x{1CC00}-\x{1CEB3}\x{1E5D0}-\x{1E5FF}\x{1F8B2}-\x{1F8C1}\x{1FA89}-\x{1FA8F}\x{1FABE}\x{1FAC6}"
    r"\x{1FADC}-\x{1FADF}\x{1FAE9}\x{1FBCB}-\x{1FBEF}"
)
"""Characters first assigned in Unicode 16, as the inside of a character class."""
_CATEGORY = re.compile(r"\\p\{(\w)\}")
_CONTRACTION = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_LLAMA3 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_SIGNS}|{_SPACES}"
_QWEN2 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}|{_SIGNS}|{_SPACES}"
_QWEN35 = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_UPPER, _LOWER = r"[\p{L}&&[^a-z]]", r"[\p{L}&&[^A-Z]]"
"""llama.cpp distinguishes upper and lower case only in ASCII."""
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTION}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTION}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
)
_BAILING = (
    r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
_SEED = rf"{_CONTRACTION}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}"
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
_ASIAN = "[一-龥぀-ゟ゠-ヿ]+"


@dataclass(frozen=True)
class Split:
    """Expressions that are applied in order, each to the pieces left by the one before; unmatched text is also a piece.

    If ``whole``, pieces that are tokens are not merged from their bytes; ``bos`` says whether BOS precedes a text if
    the file does not say so.
    """

    expressions: tuple[str, ...]
    whole: bool = False
    bos: bool = False

    def oniguruma(self) -> tuple[str, ...]:
        """The expressions as ``tokenizers.Regex`` reads them."""
        return tuple(known_to_unicode_15(each) for each in self.expressions)


def known_to_unicode_15(expression: str) -> str:
    """The expression with each one-letter category limited to characters assigned in Unicode 15.1."""
    return _CATEGORY.sub(lambda found: rf"[\p{{{found[1]}}}&&[^{SINCE_UNICODE_16}]]", expression)


_FAMILIES: Mapping[Split, str] = {
    Split((r"[\p{P}$+<=>^~|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")): "default",
    Split((_LLAMA3,), whole=True, bos=True): "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2",
    Split((_LLAMA3,), whole=True): "glm4 glm5",
    Split((_LLAMA3,)): "dbrx smaug-bpe chatglm-bpe",
    Split((_QWEN2,)): "qwen2 deepseek-r1-qwen kormo f2llmv2 stablelm2 hunyuan solar-open megrez grok-2",
    Split((_QWEN35,)): "qwen35",
    Split((_GPT2,)): "gpt-2 phi-2 gigachat a.x-4.0 mellum exaone4 mpt olmo jais trillion granite-docling",
    Split((r"\p{N}", _GPT2)): "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2",
    Split((r"[\p{P}$+<=>^~|`]+", _GPT2, "[0-9][0-9][0-9]")): "falcon",
    Split((_TEKKEN,), whole=True, bos=True): "tekken",
    Split((_GPT4O,)): "gpt-4o llama4 kanana2 talkie minimax-m2",
    Split((r"\p{N}{1,3}", _ASIAN, _DEEPSEEK3)): "deepseek-v3 hunyuan-dense joyai-llm hy_v4",
    Split((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}")): "deepseek-coder",
    Split((_BLOOM,)): "bloom poro-chat gpt3-finnish",
    Split((_BLOOM, r"\p{N}")): "viking",
    Split((_BAILING,)): "bailingmoe bailingmoe2 llada-moe",
    Split((_SEED,)): "seed-coder",
}
SPLITS: Mapping[str, Split] = {name: split for split, names in _FAMILIES.items() for name in names.split()}
"""By the values that a file may hold."""
