"""The tokenizer that a GGUF model's text is cut by: that of its folder, or the one in the file."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from harness.models.gguf.header import special_tokens


def tokenizer_of(path: Path) -> Any | None:
    """Of a folder the tokenizer's own files, of a file its metadata; None where there is none."""
    from transformers import AutoTokenizer

    if path.is_file():
        return file_tokenizer(path)
    return AutoTokenizer.from_pretrained(path) if any(path.glob("tokenizer*")) else None


def file_tokenizer(file: Path) -> Any:
    """The tokenizer in a GGUF file, as transformers reads it: alone, for it reads what lies beside the file too."""
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / file.name).symlink_to(file.absolute())
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file.name)
    ids, around = special_tokens(file)
    for name, token in ids.items():  # transformers takes BOS for EOS, and leaves padding out
        setattr(tokenizer, f"{name}_token", tokenizer.convert_ids_to_tokens(token))
    for name, added in around.items():  # which transformers does not read either
        setattr(tokenizer, f"add_{name}_token", added)
    return tokenizer
