"""Headers, configurations and records with one thing wrong in them, and random bytes, are read or refused."""

from __future__ import annotations

from random import Random

import fuzzing
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

NAMES = ("config", "gguf", "index", "pack", "record", "safetensors")


@pytest.mark.parametrize("name", NAMES)
def test_what_has_something_wrong_in_it_is_read_or_refused(name: str) -> None:
    module = fuzzing.target(name)
    whole = {path.name: path.read_bytes() for path in fuzzing.kept(name)}
    accepted = []

    @settings(max_examples=120)
    @given(st.sampled_from(sorted(whole)), st.integers(0, 2**32), st.integers(1, 3))
    def hold(kept: str, seed: int, steps: int) -> None:
        content, random = whole[kept], Random(seed)
        try:
            for _ in range(steps):
                content = module.mutate(content, random)
        except fuzzing.UNFIT:  # the step before left no structure to change
            return
        accepted.append(fuzzing.check(module.read, content))

    hold()
    assert accepted.count(False) > 40, "most changes are noticed, or nothing was tried"


@pytest.mark.parametrize("name", [name for name in NAMES if name != "index"])  # whose inputs are changes, also none
def test_random_bytes_are_refused(name: str) -> None:
    module = fuzzing.target(name)

    @settings(max_examples=40)
    @given(st.binary(max_size=200))
    def hold(content: bytes) -> None:
        assert not fuzzing.check(module.read, content)

    hold()
