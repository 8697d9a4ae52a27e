"""What is recorded when vLLM does not start: its own reason in one line, and short memory as short memory."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, model_validator

from harness.engines.vllm.runtime import lacks_memory, reason


class Configured(BaseModel):
    """As vLLM's configuration refuses what it cannot run."""

    bits: int

    @model_validator(mode="after")
    def check(self) -> Configured:
        if self.bits == 3:
            raise ValueError("3 bits are not supported for gptq.\nUse 4 or 8.")
        return self


def test_the_reason_is_vllms_not_pydantics() -> None:
    with pytest.raises(ValueError, match="validation error") as caught:
        Configured(bits=3)
    assert reason(caught.value) == "3 bits are not supported for gptq."


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            ValueError("No kernel found:\n  - MarlinKernel: no GPU\n  - CPU: bits"),
            "No kernel found: - MarlinKernel: no GPU - CPU: bits",
        ),
        (KeyError("layers.0.weight_scale"), "KeyError: 'layers.0.weight_scale'"),
        (AssertionError(), "AssertionError"),
        (NotImplementedError("only dynamic"), "NotImplementedError: only dynamic"),
    ],
)
def test_the_reason_is_one_line(error: Exception, expected: str) -> None:
    assert reason(error) == expected


def raised(inner: Exception, outer: Exception, hidden: bool) -> Exception:
    """An error that was raised while another one was handled."""
    try:
        try:
            raise inner
        except (KeyError, ValueError) as error:
            raise outer from (None if hidden else error)
    except (RuntimeError, ValueError) as error:
        return error


def test_the_reason_is_what_was_raised_last() -> None:
    """vLLM catches an inner error and raises one that says what it means."""
    assert reason(raised(KeyError("x"), ValueError("x is no quantization"), hidden=True)) == "x is no quantization"


def test_short_memory_is_found_anywhere_in_the_chain() -> None:
    short = ValueError("Free memory on device cuda:0 (3.1/80.0 GiB) on startup is less than desired")
    assert lacks_memory(raised(short, RuntimeError("Engine core initialization failed"), hidden=False))
    assert lacks_memory(MemoryError())
    assert lacks_memory(RuntimeError("[enforce fail at alloc_cpu.cpp] can't allocate memory"))
    assert not lacks_memory(ValueError("no kernel for head size 8"))
    assert not lacks_memory(raised(short, ValueError("no kernel"), hidden=True))
