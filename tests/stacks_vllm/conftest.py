"""What tests of the engine vLLM share: the made stack, programs in it, and a tiny model that its kernels can run."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from harness.stacks import Stack, Stacks, stack_definition
from harness.stacks.build import environment

SNIPPET_S = 600
"""Ends a program that hangs, also where others use the processor."""
LAYERS, HIDDEN, HEADS, KEY_HEADS, HEAD_SIZE, INNER, VOCAB = 2, 128, 2, 1, 64, 256, 512


@pytest.fixture(scope="session")
def any_vllm_stack(stacks_with: Callable[[str], Stacks]) -> Stack:
    """The stack of vLLM, whichever build this machine has."""
    return stacks_with("vllm").find("vllm")


@pytest.fixture(scope="session")
def vllm_stack(any_vllm_stack: Stack) -> Stack:
    """The stack of vLLM if it is the build for a CPU: the tests load on one, and name its kernels."""
    library = any_vllm_stack.definition.library
    if library != stack_definition("vllm").library:
        pytest.skip(f"needs vLLM's build for a CPU, and on this machine with a GPU the stack is {library}")
    return any_vllm_stack


@pytest.fixture(scope="session")
def run_in_stack(vllm_stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Runs a program in the stack and returns what its last line of output holds as JSON.

    The program is a file, or Python code. Arguments reach it as text; ``variables`` are set beside those of a worker,
    with one thread. A program that fails, fails the test with the end of what it printed.
    """

    def run(program: str | Path, *arguments: object, timeout_s: float = SNIPPET_S, **variables: str) -> Any:
        folder = tmp_path_factory.mktemp("in_stack")
        given = [str(program)] if isinstance(program, Path) else ["-c", program]
        ended = subprocess.run(
            [str(vllm_stack.python), *given, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
            cwd=folder,
            env={**environment(folder), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **variables},
        )
        lines = ended.stdout.strip().splitlines()
        if ended.returncode or not lines:
            pytest.fail(f"exit code {ended.returncode}\n{ended.stdout[-2000:]}\n{ended.stderr[-6000:]}", pytrace=False)
        return json.loads(lines[-1])

    return run


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A random Llama in float32 with heads of 64, the smallest that vLLM has kernels for everywhere, and a tokenizer.

    Its weights keep activations of size 1 from layer to layer and give logits of deviation 3: of 512 tokens one has a
    probability of 0.3 or so, as in a trained model, and the same token is rarely the likeliest twice.
    """
    folder = tmp_path_factory.mktemp("tiny_llama_64")
    draw = np.random.default_rng(64)

    def matrix(outputs: int, inputs: int, deviation: float = 1.0) -> np.ndarray:
        return (draw.standard_normal((outputs, inputs)) * deviation / np.sqrt(inputs)).astype(np.float32)

    def norm() -> np.ndarray:
        return draw.uniform(0.5, 1.5, HIDDEN).astype(np.float32)

    tensors = {"model.embed_tokens.weight": draw.standard_normal((VOCAB, HIDDEN)).astype(np.float32)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        tensors |= {
            f"{prefix}input_layernorm.weight": norm(),
            f"{prefix}self_attn.q_proj.weight": matrix(HEADS * HEAD_SIZE, HIDDEN, 1.5),
            f"{prefix}self_attn.k_proj.weight": matrix(KEY_HEADS * HEAD_SIZE, HIDDEN, 1.5),
            f"{prefix}self_attn.v_proj.weight": matrix(KEY_HEADS * HEAD_SIZE, HIDDEN),
            f"{prefix}self_attn.o_proj.weight": matrix(HIDDEN, HEADS * HEAD_SIZE),
            f"{prefix}post_attention_layernorm.weight": norm(),
            f"{prefix}mlp.gate_proj.weight": matrix(INNER, HIDDEN),
            f"{prefix}mlp.up_proj.weight": matrix(INNER, HIDDEN),
            f"{prefix}mlp.down_proj.weight": matrix(HIDDEN, INNER, 1.5),
        }
    tensors |= {"model.norm.weight": norm(), "lm_head.weight": matrix(VOCAB, HIDDEN, 3.0)}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEY_HEADS,
        "head_dim": HEAD_SIZE,
        "hidden_act": "silu",
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tokenizer = json.loads((tiny / "tokenizer_config.json").read_text(encoding="utf-8"))
    (folder / "tokenizer_config.json").write_text(json.dumps({**tokenizer, "model_max_length": 1024}), encoding="utf-8")
    (folder / "tokenizer.json").write_bytes((tiny / "tokenizer.json").read_bytes())
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 0, "eos_token_id": 1}), encoding="utf-8")
    return folder
