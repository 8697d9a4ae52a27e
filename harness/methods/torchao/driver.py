"""What torchao's methods share: passing its configurations to transformers."""

from __future__ import annotations

from harness.core.method import Setting

BLACKWELL = (10, 0)
"""The lowest CUDA compute capability with tensor cores for microscaled formats."""


def wrap(config: object, setting: Setting) -> object:
    """A torchao configuration as ``from_pretrained(quantization_config=…)`` takes it."""
    from transformers import TorchAoConfig

    return TorchAoConfig(config, modules_to_not_convert=list(setting.untouched))


def is_blackwell(device: str) -> bool:
    """Whether the device multiplies microscaled formats directly."""
    import torch

    return device.startswith("cuda") and torch.cuda.get_device_capability(device) >= BLACKWELL
