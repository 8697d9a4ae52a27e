"""Whether a variant reads text as its unquantized source does: figures of other tokens are no comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.errors import InvalidRunError

PROBE = 'The "quick" fox\u2019s 12,345 jumps:\n\n\tna\u00efve caf\u00e9 \u4f60\u597d \U0001f98a  x = f(y);  <s> </s> '
"""Words, digits, quotes, white space, other scripts and what looks like special tokens."""
SPECIAL = ("bos_token_id", "eos_token_id", "unk_token_id")
"""The padding token is left out: it never reaches a figure, and published checkpoints choose one freely."""


def check_tokenizer(source: Path, variant: Any, chat: bool = False, trust_remote_code: bool = False) -> None:
    """Raises InvalidRunError naming in what the variant's tokenizer differs from that of the folder ``source``.

    Chat templates, which publishers mend, count where ``chat`` says that one is used.
    """
    from transformers import AutoTokenizer

    differing = differences(AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code), variant, chat)
    if differing:
        raise InvalidRunError(
            f"the variant's tokenizer is not its source's: {'; '.join(differing)}. Their figures cannot be compared"
        )


def differences(source: Any, variant: Any, chat: bool) -> list[str]:
    """What two tokenizers differ in, in words."""
    found = [
        f"{name} is {getattr(variant, name)}, not {getattr(source, name)}"
        for name in SPECIAL
        if getattr(variant, name) != getattr(source, name)
        if (name, getattr(variant, name)) != ("unk_token_id", None)  # GGUF files leave it out where no text needs it
    ]
    if _ids(variant, PROBE, special=False) != _ids(source, PROBE, special=False):
        found.append("a probe text becomes other tokens")
    elif _ids(variant, PROBE, special=True) != _ids(source, PROBE, special=True):
        found.append("other special tokens are put around a text (BOS, EOS)")
    if chat and variant.chat_template != source.chat_template:
        found.append("the chat template")
    return found


def _ids(tokenizer: Any, text: str, special: bool) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
    return ids
