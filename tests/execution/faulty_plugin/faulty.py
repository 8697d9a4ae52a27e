"""A method that fails in every way a run can fail. It lies on PYTHONPATH for the tests that need it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

from harness.core.method import Method, MethodParams, QuantizeJob


class FaultyParams(MethodParams):
    """``how`` it fails; ``marker`` is a file whose presence cures it."""

    how: Literal[
        "killed",
        "abort",
        "memory",
        "hang",
        "raise",
        "unsupported",
        "nothing",
        "nan",
        "nan-fact",
        "reload",
        "unprobed",
        "partly",
    ]
    marker: str = ""


def quantize(job: QuantizeJob[FaultyParams]) -> Any:
    import torch

    from harness.errors import UnsupportedError
    from harness.methods.rtn.rtn import RTN, RtnParams

    how = job.params.how
    if Path(job.params.marker).is_file():
        how = "cured"
    if how == "killed":
        print("about to be killed", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "abort":
        os.abort()
    if how == "memory":
        hoard = []
        while True:
            hoard.append(torch.ones(2**24))
    if how == "hang":
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", job.out])
        time.sleep(600)
    if how == "raise":
        raise RuntimeError("the library is unhappy")
    if how == "unsupported":
        raise UnsupportedError("this model has no such layers")
    RTN.enable()
    if how == "nothing":
        model = job.load()
        model.save_pretrained(job.out)
        return model
    if how == "nan-fact":
        job.note("training_loss_last", float("nan"))
    rtn = RtnParams(bits=8, group_size=32)
    untouched = (*job.untouched, *(name for name in job.scope if ".experts.3." in name)) if how == "partly" else ()
    model = RTN.quantize(
        QuantizeJob(rtn, job.source, job.out, job.device, job.dtype, job.seed, job.load, untouched=untouched)
    )
    if how == "nan":
        model.model.layers[1].mlp.up_proj.scale.fill_(torch.nan)
        model.save_pretrained(job.out)
    if how == "reload":
        with torch.no_grad():
            model.model.layers[1].mlp.up_proj.scale.mul_(2)
        job.probe(model)
        return None
    return None if how == "unprobed" else model


def enable() -> None:
    from harness.methods.rtn.rtn import RTN

    RTN.enable()


FAULTY = Method(
    name="faulty",
    version=1,
    summary="fails",
    params=FaultyParams,
    quantize=quantize,
    enable=enable,
    quantizes_experts=frozenset({"qwen3_moe"}),
)
