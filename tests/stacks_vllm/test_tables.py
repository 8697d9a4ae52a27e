"""What planning knows of vLLM, beside the vLLM that the stack has."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from harness.engines.vllm.engine import SWITCH, VARIABLES
from harness.engines.vllm.tables import HEAD_SIZES, ONLINE_ON_CPU, READ

pytestmark = pytest.mark.stack

TABLES = """
import json
from vllm.config.quantization import _ONLINE_SHORTHANDS
from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS, get_quantization_config
from vllm.model_executor.layers.quantization.inc import INCConfig
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

configs = {name: object.__new__(get_quantization_config(name)) for name in QUANTIZATION_METHODS}
found = {
    "dtypes": {name: sorted(map(str, each.get_supported_act_dtypes())) for name, each in configs.items()},
    "auto-round": INCConfig.override_quantization_method({"quant_method": "auto-round"}, None),
    "online": list(_ONLINE_SHORTHANDS),
    "heads": CPUAttentionBackend.get_supported_head_sizes(),
}
print()
print(json.dumps(found))
"""
ENVIRONMENT = """
import json, os, sys
import vllm.envs as envs

found = []
for name, value in json.loads(sys.argv[1]):
    os.environ[name] = value
    try:
        found.append(getattr(envs, name))
    except ValueError:
        found.append("refused")
print()
print(json.dumps(found))
"""


def test_the_methods_and_dtypes_that_it_reads_are_those_of_its_classes(
    run_in_stack: Callable[..., Any],
) -> None:
    found = run_in_stack(TABLES)
    names = {**{name: name for name in READ}, "auto-round": found["auto-round"]}
    assert {name: found["dtypes"].get(own) for name, own in names.items()} == {
        name: sorted(f"torch.{dtype}" for dtype in dtypes) for name, dtypes in READ.items()
    }
    assert set(ONLINE_ON_CPU) <= set(found["online"])
    assert tuple(found["heads"]) == HEAD_SIZES


def test_it_reads_every_value_that_a_recipe_may_give_a_variable(run_in_stack: Callable[..., Any]) -> None:
    switches = [name for name, pattern in VARIABLES.items() if pattern == SWITCH]
    layouts = VARIABLES["VLLM_KV_CACHE_LAYOUT"].split("|")
    given = [
        *((name, value) for name in switches for value in "01"),
        *(("VLLM_KV_CACHE_LAYOUT", value) for value in (*layouts, "ABC")),
        ("VLLM_DISABLED_KERNELS", "A,B"),
    ]
    expected = [*[False, True] * len(switches), *layouts, "refused", ["A", "B"]]
    assert run_in_stack(ENVIRONMENT, json.dumps(given)) == expected
