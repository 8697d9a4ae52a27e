"""Quantizes and reads a model in processes of their own: some libraries replace transformers' classes in theirs."""

from __future__ import annotations

import gc
import json
import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from in_memory import quantized

if TYPE_CHECKING:
    import torch

LENGTH, ROWS = 64, 32
"""Calibration rows of tokens below 250, which every expert of a tiny mixture gets some of."""


def quantize(
    name: str, given: Mapping[str, Any], source: Path, out: Path, dtype: str, skip: Sequence[str] = ()
) -> None:
    """Runs the method on ``source``; leaves its checkpoint and, in ``logits``, those of tokens 2 to 33, in ``out``.

    ``told`` holds the modules that the library only rounded to nearest, and the method's notes.

    Nothing is compiled: auto-round would have a compiler work for minutes on layers that compute for seconds.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    from harness import plugins
    from harness.core.method import CalibrationSet, QuantizeJob
    from harness.models.headers import read_directory
    from harness.models.scope import modules

    torch.compiler.set_stance("force_eager")
    method = plugins.method(name)
    if method.enable is not None:
        method.enable()
    params = method.params.model_validate(given)
    tokens = [[(7 * row + 3 * column) % 250 + 1 for column in range(LENGTH)] for row in range(ROWS)]
    scope = modules(read_directory(source).shapes, skip)
    notes: dict[str, Any] = {}
    rounded: list[str] = []
    job = QuantizeJob(
        params,
        source,
        out,
        "cpu",
        dtype,
        0,
        lambda: AutoModelForCausalLM.from_pretrained(source, dtype=dtype).eval(),
        CalibrationSet(tokens, [LENGTH] * ROWS, "0") if method.calibrated(params) else None,
        scope.scope,
        scope.untouched,
        note=notes.__setitem__,
        rounded=rounded.extend,
    )
    probe = torch.arange(2, 34)[None]
    saved = quantized(method, job, lambda model: model(input_ids=probe).logits[0].float())
    save_file({"logits": saved.contiguous()}, out / "logits")
    (out / "told").write_text(json.dumps({"rounded": rounded, "notes": notes}), encoding="utf-8")


IMPORTED = ["torch", "transformers.modeling_utils", "safetensors.torch", "harness.plugins", "harness.models.scope"]
"""What every such process needs; no library that replaces anything."""


def alone(function: Callable[..., None], *args: Any) -> None:
    """Calls a module's function in a process of its own, forked from one that imported IMPORTED; fails if it does."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    child = context.Process(target=_with_frozen_heap, args=(function, *args))
    child.start()
    child.join()
    assert child.exitcode == 0, f"{function.__name__} failed; see what was printed"


def _with_frozen_heap(function: Callable[..., None], *args: Any) -> None:
    """Calls it where the garbage collector, which libraries start for every layer, has little to look at."""
    gc.freeze()
    function(*args)


def quantize_alone(
    name: str, given: Mapping[str, Any], source: Path, out: Path, dtype: str, skip: Sequence[str] = ()
) -> torch.Tensor:
    """The logits that ``quantize`` leaves, in a fresh process."""
    from safetensors.torch import load_file

    alone(quantize, name, dict(given), source, out, dtype, skip)
    return load_file(out / "logits")["logits"]


def read(name: str, checkpoint: Path, dtype: str) -> None:
    """Loads what a method wrote as a run does; leaves the logits of tokens 2 to 33 and the parameters that are codes.

    They are in ``read``, beside the checkpoint.
    """
    import torch
    from safetensors.torch import save_file

    from harness import plugins
    from harness.core.engine import LoadRequest
    from harness.engines.transformers.engine import TRANSFORMERS
    from harness.models.scope import in_decoder

    method = plugins.method(name)
    if method.enable is not None:
        method.enable()
    model = TRANSFORMERS.load(LoadRequest(checkpoint, dtype, "cpu", read=method.read), TRANSFORMERS.params())
    quantized = sum(e.parameters for e in model.weight_ledger() if e.quantized and in_decoder(e.name, 2))
    with torch.inference_mode():
        logits = model.logits(torch.arange(2, 34)[None])[0].float()
    save_file({"logits": logits.contiguous(), "quantized": torch.tensor(quantized)}, checkpoint / "read")


def read_alone(name: str, checkpoint: Path, dtype: str) -> tuple[torch.Tensor, int]:
    """The logits that ``read`` leaves in a fresh process, and how many parameters are quantized."""
    from safetensors.torch import load_file

    alone(read, name, checkpoint, dtype)
    found = load_file(checkpoint / "read")
    return found["logits"], int(found["quantized"])
