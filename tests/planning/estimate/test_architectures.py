"""Which of transformers' causal language models ``estimate`` knows: the list of those that it does not is checked."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from modules_by_path import module_at
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.heavy


architectures = module_at(ROOT / "benchmarks" / "architectures.py")


def test_the_page_names_each_exception_and_counts_the_others() -> None:
    page = (ROOT / "docs" / "measurements" / "estimate-cpu.md").read_text(encoding="utf-8")
    section = page.partition("## Every causal language model of transformers")[2]
    types = len(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    assert f"{types - len(architectures.EXCEPTIONS)} of {types}" in section
    for kind, reason in architectures.EXCEPTIONS.items():
        (row,) = [line for line in section.splitlines() if f"`{kind}`" in line and line.startswith("|")]
        assert reason in row
    assert set(re.findall(r"`(\w+)`", section)) >= architectures.COMPLETED.keys()
    assert {*architectures.COMPLETED, *architectures.EXCEPTIONS} <= MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys()


@pytest.mark.parametrize("kind", ["bamba", "ministral", "openai-gpt", "rembert"])
def test_what_the_list_does_not_name_is_described_whole(kind: str) -> None:
    lacking, detail = architectures.outcome(kind)
    assert lacking is None, detail


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted({*architectures.COMPLETED, *architectures.EXCEPTIONS}))
def test_a_type_is_described_whole_unless_it_is_an_exception(kind: str) -> None:
    lacking, detail = architectures.outcome(kind)
    assert (lacking is not None) == (kind in architectures.EXCEPTIONS), detail
