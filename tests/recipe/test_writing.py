"""Recipes that the harness writes: a file that reads back as the data, whatever the comments hold."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given
from hypothesis import strategies as st

from harness.recipe.writing import commented
from harness.recipe.yaml_file import read_yaml

words = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=150)
scalars = st.one_of(words, st.integers(-(10**6), 10**6), st.booleans(), st.floats(-1e6, 1e6))
keys = st.from_regex(r"[a-z]{1,12}", fullmatch=True)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(keys, inner, max_size=4)),
    max_leaves=8,
)


@given(st.dictionaries(keys, values, min_size=1, max_size=5), st.lists(st.text(max_size=300), min_size=1, max_size=3))
def test_a_written_recipe_reads_back_as_it_was(data: dict[str, object], head: list[str]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "r.yaml")
        path.write_text(commented(data, head, dict.fromkeys(data, "What it is.")))
        assert read_yaml(path).data == data


def test_each_key_stands_below_its_comment() -> None:
    assert commented({"name": "a", "methods": ["none", {"rtn": {"bits": 4}}]}, ["made by a test"], {"name": "N."}) == (
        "# made by a test\n\n# N.\nname: a\n\nmethods:\n  - none\n  - rtn: {bits: 4}\n"
    )
