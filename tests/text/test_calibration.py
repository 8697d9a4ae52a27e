"""Calibration sets: what is in them, that a seed repeats them, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from harness.core.workload import CalibrationRef, TextRef
from harness.errors import DamagedError, UnsupportedError
from harness.text import calibration
from harness.text.leakage import overlap
from harness.text.sources import DATA, rows

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def tokenizer(tiny: Path):
    return AutoTokenizer.from_pretrained(tiny)


def text(path: Path) -> TextRef:
    return TextRef(path.name, str(path))


DEMO = CalibrationRef(text(DATA / "demo_calibration.txt"), "concat", "never", False, 8, 64, 0)


def plain_ids(tokenizer, content: str) -> list[int]:
    return tokenizer(content, add_special_tokens=False, verbose=False)["input_ids"]


def test_concat_cuts_blocks_of_the_joined_text(tokenizer) -> None:
    everything = plain_ids(tokenizer, "\n\n".join(row for row in rows(DEMO.text) if row.strip()))
    blocks = {tuple(everything[i : i + 64]) for i in range(0, len(everything) - 63, 64)}
    made = calibration.build(DEMO, tokenizer)
    assert len(made.tokens) == 8
    assert {tuple(row) for row in made.tokens} <= blocks
    assert made.lengths == [64] * 8


def test_a_seed_repeats_the_draw_and_another_changes_it(tokenizer) -> None:
    first, again = calibration.build(DEMO, tokenizer), calibration.build(DEMO, tokenizer)
    other = calibration.build(replace(DEMO, seed=1), tokenizer)
    assert first == again
    assert first.sha256 != other.sha256


@pytest.mark.parametrize("packing", ["concat", "crop", "pad"])
def test_bos_begins_every_sample_and_takes_its_room(tokenizer, tmp_path: Path, packing) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text(
        "".join(json.dumps({"text": "the ship came back to the old harbour " * 40}) + "\n" for _ in range(5))
    )
    ref = CalibrationRef(text(file), packing, "always", False, 4, 32, 0)
    made = calibration.build(ref, tokenizer)
    assert [row[0] for row in made.tokens] == [tokenizer.bos_token_id] * 4
    assert {len(row) for row in made.tokens} == {32}
    auto = calibration.build(replace(ref, bos="auto"), tokenizer)
    assert auto.tokens == made.tokens  # this tokenizer puts BOS first by itself


def test_crop_takes_stretches_of_single_rows(tokenizer, tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    long = ["one two three four five six seven eight nine ten " * 10, "red green blue black white grey brown " * 10]
    file.write_text("".join(json.dumps({"text": row}) + "\n" for row in ["short", *long]))
    made = calibration.build(CalibrationRef(text(file), "crop", "never", False, 8, 24, 3), tokenizer)
    assert len(made.tokens) == 2  # the short row gives none
    whole = [plain_ids(tokenizer, row) for row in long]
    for row in made.tokens:
        assert any(row == ids[i : i + 24] for ids in whole for i in range(len(ids)))


def test_pad_fills_short_rows_up_and_masks_the_filling(tokenizer, tmp_path: Path) -> None:
    file = tmp_path / "t.txt"
    file.write_text("a few words\n\nand " + "many words " * 40 + "\n")
    made = calibration.build(CalibrationRef(text(file), "pad", "never", False, 9, 32, 0), tokenizer)
    short = next(i for i, length in enumerate(made.lengths) if length < 32)
    real = made.lengths[short]
    assert made.tokens[short][:real] == plain_ids(tokenizer, "a few words\n")
    assert made.masks[short] == [1] * real + [0] * (32 - real)
    assert sorted(made.lengths)[1] == 32


@pytest.mark.parametrize("packing", ["concat", "crop"])
def test_a_one_line_text_is_refused(tokenizer, tmp_path: Path, packing) -> None:
    file = tmp_path / "t.txt"
    file.write_text("one line only\n")
    with pytest.raises(UnsupportedError, match="too short for one sample of 32 tokens"):
        calibration.build(CalibrationRef(text(file), packing, "never", False, 4, 32, 0), tokenizer)


def test_a_tokenizer_without_a_chat_template_is_told(tokenizer) -> None:
    with pytest.raises(UnsupportedError, match="chat template"):
        calibration.build(replace(DEMO, chat_template=True), tokenizer)


def test_the_chat_template_wraps_every_row(tokenizer, tiny: Path, tmp_path: Path) -> None:
    templated = AutoTokenizer.from_pretrained(tiny)
    templated.chat_template = "{% for m in messages %}<{{ m.role }}> {{ m.content }}{% endfor %}"
    file = tmp_path / "t.txt"
    file.write_text("some words\n")
    made = calibration.build(CalibrationRef(text(file), "pad", "never", True, 1, 32, 0), templated)
    assert templated.decode(made.tokens[0][: made.lengths[0]]).startswith("<user> some words")


def test_what_is_kept_comes_back_and_damage_is_seen(tokenizer, tmp_path: Path) -> None:
    made = calibration.build(DEMO, tokenizer)
    calibration.save(made, tmp_path)
    assert calibration.read(tmp_path) == made
    content = json.loads((tmp_path / calibration.FILE).read_text())
    content["tokens"][0][0] += 1
    (tmp_path / calibration.FILE).write_text(json.dumps(content))
    with pytest.raises(DamagedError, match="damaged"):
        calibration.read(tmp_path)


ROWS = st.lists(st.lists(st.integers(0, 5), min_size=4, max_size=20), min_size=1, max_size=4)


@given(ROWS, ROWS)
def test_overlap_is_the_share_of_common_runs(ours: list[list[int]], theirs: list[list[int]]) -> None:
    def runs(row: list[int]) -> list[tuple[int, ...]]:
        return [tuple(row[i : i + 3]) for i in range(len(row) - 2)]

    seen = {run for row in ours for run in runs(row)}
    wanted = [run for row in theirs for run in runs(row)]
    assert overlap(ours, theirs, 3) == sum(run in seen for run in wanted) / len(wanted)


def test_the_same_text_overlaps_wholly_and_the_harnesss_own_two_do_not(tokenizer) -> None:
    ids = plain_ids(tokenizer, (DATA / "demo.txt").read_text(encoding="utf-8"))
    windows = [ids[i : i + 128] for i in range(0, 2048, 128)]
    assert overlap([ids], windows) == 1.0
    ours = calibration.build(replace(DEMO, samples=1000), tokenizer)
    assert overlap(ours.tokens, windows) < 1e-3
