"""Checks that two tokenizers are equivalent: a variant's and its source's, or one before and after saving."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.errors import InvalidRunError

PROBE = 'The "quick" fox\u2019s 12,345 jumps:\n\n\tna\u00efve caf\u00e9 \u4f60\u597d \U0001f98a  x = f(y);  <s> </s> '
"""Words, digits, quotes, white space, other scripts and strings that look like special tokens."""
SAVED_PROBES = (
    PROBE,
    "The capital of France is",
    " leading,  double and   triple spaces; a trailing one ",
    "tabs\t\tand\nlines\r\n\n\nfour    spaces\n    if x != 10: return {'a': [1, 22, 333, 4444]}",
    "Zażółć gęślą jaźń; Straße, ŒUVRE, İstanbul",
    "Все люди рождаются свободными. Όλοι οι άνθρωποι γεννιούνται ελεύθεροι.",
    "يولد جميع الناس أحرارًا، ١٢٣. כל בני האדם נולדו",
    "सभी मनुष्यों को गौरव। মানুষ স্বাধীন। மனிதப் பிறவி",
    "人人生而自由。すべての人間は、ﾊﾝｶｸ。모든 인간은 태어날 때부터",
    "มนุษย์ทั้งหลายเกิดมา ყველა ადამიანი Բոլոր մարդիկ የሰው ልጅ",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f44d\U0001f3fd e\u0301 n\u0303 \ufffd",
    "\x00\x07\x1b[0m \u00a0\u3000\u2028",
    "a<s>b</s> <unk><pad>[CLS] <|endoftext|><|im_start|>user\n<start_of_turn>model\n<0x41>\u2581",
)
"""Test strings for a saved tokenizer: scripts, numbers, code, white space, emoji, controls, special tokens."""
SPECIAL = ("bos_token_id", "eos_token_id", "unk_token_id")
"""The padding token is left out: it never affects a figure, and published checkpoints choose it freely."""


def check_tokenizer(source: Path, variant: Any, chat: bool = False, trust_remote_code: bool = False) -> None:
    """Raises InvalidRunError if the variant's tokenizer differs from that of the folder ``source``, and says how.

    Chat templates are compared only with ``chat``, because publishers fix them later.
    """
    from transformers import AutoTokenizer

    differing = differences(AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code), variant, chat)
    if differing:
        raise InvalidRunError(
            f"the variant's tokenizer is not its source's: {'; '.join(differing)}. Their figures cannot be compared"
        )


def check_saved(made: Any, folder: Path, trust_remote_code: bool = False) -> None:
    """Raises InvalidRunError if the tokenizer saved in the folder, when read again, differs from ``made``.

    Compares the fixed test strings and all special tokens.
    """
    from transformers import AutoTokenizer

    again = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    special = "x".join(["", *sorted(made.get_added_vocab()), ""])
    differing = differences(made, again, True, (*SAVED_PROBES, special))
    if differing:
        raise InvalidRunError(f"the saved tokenizer differs from the one in memory: {'; '.join(differing)}")


def differences(source: Any, variant: Any, chat: bool, probes: Sequence[str] = (PROBE,)) -> list[str]:
    """The differences between two tokenizers, in words."""
    found = [
        f"{name} is {getattr(variant, name)}, not {getattr(source, name)}"
        for name in SPECIAL
        if getattr(variant, name) != getattr(source, name)
        if (name, getattr(variant, name)) != ("unk_token_id", None)  # GGUF files omit it if no text needs it
    ]
    if any(_ids(variant, text, special=False) != _ids(source, text, special=False) for text in probes):
        found.append("a probe text becomes other tokens")
    elif any(_ids(variant, text, special=True) != _ids(source, text, special=True) for text in probes):
        found.append("other special tokens are put around a text (BOS, EOS)")
    if chat and variant.chat_template != source.chat_template:
        found.append("the chat template")
    return found


def _ids(tokenizer: Any, text: str, special: bool) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
    return ids
