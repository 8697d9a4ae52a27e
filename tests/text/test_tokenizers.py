"""A variant that reads text otherwise than its source is told from it, by what differs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from harness.errors import InvalidRunError
from harness.text.tokenizers import check_saved, check_tokenizer

pytestmark = pytest.mark.heavy


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    for file in tiny.glob("tokenizer*"):
        shutil.copy(file, tmp_path / file.name)
    shutil.copy(tiny / "config.json", tmp_path)
    return tmp_path


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refusal(tiny: Path, variant: Path) -> str:
    with pytest.raises(InvalidRunError) as caught:
        check_tokenizer(tiny, AutoTokenizer.from_pretrained(variant))
    return str(caught.value)


def test_a_copy_is_the_same_and_padding_does_not_matter(tiny: Path, copy: Path) -> None:
    edit(copy / "tokenizer_config.json", pad_token="</s>")
    check_tokenizer(tiny, AutoTokenizer.from_pretrained(copy))


def test_another_chat_template_is_told_where_one_is_used(tiny: Path, copy: Path) -> None:
    edit(copy / "tokenizer_config.json", chat_template="{{ messages[0]['content'] }}")
    variant = AutoTokenizer.from_pretrained(copy)
    check_tokenizer(tiny, variant)
    with pytest.raises(InvalidRunError, match="not its source's: the chat template"):
        check_tokenizer(tiny, variant, chat=True)


def test_a_bos_that_is_no_longer_added_is_told(tiny: Path, copy: Path) -> None:
    edit(copy / "tokenizer.json", post_processor=None)
    assert "other special tokens are put around a text (BOS, EOS)" in refusal(tiny, copy)


def test_another_bos_is_told(tiny: Path, copy: Path) -> None:
    edit(copy / "tokenizer_config.json", bos_token="</s>")
    assert "bos_token_id is 1, not 0" in refusal(tiny, copy)


def test_other_tokens_are_told(tiny: Path, copy: Path) -> None:
    model = json.loads((copy / "tokenizer.json").read_text())["model"]
    edit(copy / "tokenizer.json", model={**model, "merges": model["merges"][:100]})
    assert "a probe text becomes other tokens" in refusal(tiny, copy)


def saved_refusal(tiny: Path, folder: Path) -> str:
    with pytest.raises(InvalidRunError) as caught:
        check_saved(AutoTokenizer.from_pretrained(tiny), folder)
    return str(caught.value)


def test_a_tokenizer_that_was_saved_well_is_the_same(tiny: Path, tmp_path: Path) -> None:
    made = AutoTokenizer.from_pretrained(tiny)
    made.save_pretrained(tmp_path)
    check_saved(made, tmp_path)


def test_a_saved_tokenizer_that_cuts_otherwise_is_told(tiny: Path, copy: Path) -> None:
    """Each plants a difference that only some texts show."""
    content = json.loads((copy / "tokenizer.json").read_text())
    merges = content["model"]["merges"]
    spaces = {"type": "Replace", "pattern": {"String": "   "}, "content": " "}
    wide = {"type": "Replace", "pattern": {"String": "\u3000"}, "content": " "}
    for planted in (
        {"model": {**content["model"], "merges": [pair for pair in merges if "".join(pair) != "\u0120of"]}},
        {"normalizer": spaces},
        {"normalizer": wide},
    ):
        (copy / "tokenizer.json").write_text(json.dumps({**content, **planted}))
        told = saved_refusal(tiny, copy)
        assert told == "the saved tokenizer differs from the one in memory: a probe text becomes other tokens"


def test_a_bos_or_a_template_lost_in_saving_is_told(tiny: Path, copy: Path) -> None:
    edit(copy / "tokenizer.json", post_processor=None)
    edit(copy / "tokenizer_config.json", chat_template="{{ messages[0]['content'] }}")
    told = saved_refusal(tiny, copy)
    assert "other special tokens are put around a text (BOS, EOS); the chat template" in told
