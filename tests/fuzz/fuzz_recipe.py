"""A recipe file and, after a zero byte, the file ``base.yaml`` beside it: read, checked and planned.

It is planned for a site that is not this machine. Which shapes transformers gives a synthetic model is not asked, since
that takes a process. In the folder lie a model and what a path may lead to by mistake or malice.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import yaml
from elsewhere import Elsewhere
from mutations import HOSTILE, changed

from harness.errors import SourceError, UsageError
from harness.models import sources
from harness.planning.plan import plan
from harness.plugins import engine_names, figures, method_names
from harness.recipe import load_recipe
from harness.tasks.catalog import catalog

MODEL = Path(__file__).parents[1] / "data" / "tiny-llama"
SITE = Elsewhere()
LOADER, DUMPER = (getattr(yaml, f"C{kind}", getattr(yaml, kind)) for kind in ("SafeLoader", "SafeDumper"))
"""Those in C are ten times as fast; here they serve to mutate alone."""
PLACES = (
    "tiny",
    "pipe",
    "loop",
    "folder",
    "huge.txt",
    "huge.yaml",
    "empty.txt",
    "task.yaml",
    "/dev/zero",
    "/dev/stdin",
)
"""What lies in the folder, and devices that every machine has."""
WORDS: tuple[Any, ...] = (
    *PLACES,
    *(f"{name}{suffix}" for name in ("base", "recipe", "folder/x", "pipe/x", "x" * 255) for suffix in (".yaml", "")),
    *("~", "~root/x", "~no_such_user", "../" * 100, "a/" * 2500, "org/model", "org/model\n", "a--b/..", "-", "..", "*"),
    *(
        "package:__main__/x",
        "package:json/x",
        "package:/",
        "synthetic:llama",
        "synthetic:tiny/config.json",
        "synthetic:",
    ),
    *("*" * 99, "[!]", "[z-a]*", "[" * 99, "*a" * 50, "model.layers.0.*", "*.down_proj", "lm_head"),
    *("8GiB", "9" * 400 + "GB", "0GiB", "1e999", "10m", "9" * 400 + "h", "0.5%", "100%", "1e-999", "USD", "A" * 40),
    *("a" * 40, "eager", "cpu", "cuda", "sliding", "llama.cpp", "channel", "tensor", "model", "int4", "demo", "true"),
    *("none", "rtn", "gguf", "checkpoint", "hellaswag", "mmlu", "Tiny", "tiny"),
    *(2**24, 2**24 + 1, 10**9, -(2**63), 10**400, list(range(99)), list(range(500)), [[4]], [{}, {}], ["a"] * 101),
)
"""Values that mean something, or almost, somewhere in a recipe."""
KEYS = (
    *("name", "models", "methods", "engines", "measure", "baseline", "repetitions", "limits", "scope", "calibration"),
    *("device", "threads", "attention", "exclude", "seed", "kv_cache", "decode_mode", "price", "gates", "extends"),
    *("id", "label", "dtype", "config", "perplexity", "tasks", "throughput", "memory", "energy", "divergence", "text"),
    *("bits", "group_size", "stack", "skip", "overrides", "num_hidden_layers", "hidden_size", "model_type", "params"),
)
SYNTAX = (
    *(
        '!!int ""',
        "!!float ''",
        "!!bool x",
        "!!timestamp x",
        "!!null x",
        "!!map x",
        "!!str {}",
        "!!seq {}",
        "!!binary x",
    ),
    *('"\\U00110000"', '"\\uD800"', '"\\x1b[31m"', '"\\0"', "\x1b", "\x00", "\ufeff", "\u202e", "\u2028", "\x85"),
    *(
        "9" * 5000,
        "1" + ":59" * 3000,
        "0x" + "f" * 5000,
        "1.0e+999",
        ".nan",
        "-.inf",
        "2026-99-99",
        "2026-01-01",
        "0o7",
    ),
    *(
        "{[a]: b}",
        "? {}",
        "? [a]\n: b",
        "<<: {a: 1}",
        "*a",
        "&a [*a]",
        "&a",
        "*missing",
        "- ",
        "? ",
        "[",
        "{",
        "]",
        "'",
    ),
    *(
        "[" * 200,
        "{a: " * 40,
        "\t",
        "---\n",
        "...\n",
        "%YAML 3.0\n---\n",
        "!",
        "!!python/object:os.system",
        "|\n ",
        "null",
    ),
    *("a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\n", "", "~", "#"),
)
"""YAML that a value, a key or a line may be replaced by."""


def read(content: bytes, folder: Path) -> object:
    recipe, _, base = content.partition(b"\0\0")
    (folder / "recipe.yaml").write_bytes(recipe)
    (folder / "base.yaml").write_bytes(base)
    (folder / "tiny").symlink_to(MODEL)
    (folder / "loop").symlink_to("loop")
    (folder / "folder").mkdir()
    (folder / "odd").mkdir()
    for name in ("pipe", "pipe.yaml", "odd/config.json", "odd/model.safetensors"):
        os.mkfifo(folder / name)
    (folder / "empty.txt").touch()
    (folder / "task.yaml").write_text("task: own\ninclude: task.yaml\n")
    for name in ("huge.txt", "huge.yaml"):
        with (folder / name).open("wb") as file:
            file.truncate(100_000_000)
    with mock.patch.object(sources, "resolve", side_effect=SourceError("not asked")):
        return plan(load_recipe(folder / "recipe.yaml"), SITE)


def mutate(content: bytes, random: Random) -> bytes:
    """Changes a value or a key of the data, or replaces a word of the text by other YAML."""
    recipe, zero, base = content.partition(b"\0\0")
    if zero and random.random() < 0.3:
        return recipe + zero + _mutated(base, random)
    return _mutated(recipe, random) + zero + base


def _mutated(content: bytes, random: Random) -> bytes:
    if random.random() < 0.7 and b"&" not in content:  # an anchor may stand for very many values
        try:
            return _changed_data(content, random)
        except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            pass  # it is no mapping that PyYAML reads, or holds what it cannot write
    return _changed_text(content, random)


def _changed_data(content: bytes, random: Random) -> bytes:
    data = yaml.load(content, LOADER)
    for _ in range(random.choice((1, 1, 2))):
        data = random.choice((_replaced, _replaced, changed))(data, random)
    return yaml.dump(data, Dumper=DUMPER, sort_keys=False, allow_unicode=True).encode("utf-8", "surrogatepass")


def _replaced(data: Any, random: Random) -> Any:
    """One value or key replaced by one that may mean something there."""
    places = [(data, key) for key in data] if isinstance(data, dict) else list(enumerate(data))
    holder, key = data, random.choice(places)[1] if isinstance(data, dict) else random.choice(places)[0]
    while isinstance(holder[key], dict | list) and holder[key] and random.random() < 0.8:
        holder = holder[key]
        key = random.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    if isinstance(holder, dict) and random.random() < 0.3:
        holder[random.choice((*KEYS, *method_names(), *engine_names(), *figures()))] = holder[key]
    else:
        holder[key] = random.choice(WORDS if random.random() < 0.8 else HOSTILE)
    return data


def _changed_text(content: bytes, random: Random) -> bytes:
    text = content.decode("utf-8", "replace")
    words = text.replace("{", " { ").replace("}", " } ").replace("[", " [ ").replace("]", " ] ").split(" ")
    for _ in range(random.choice((1, 1, 2))):
        place = random.randrange(len(words))
        if random.random() < 0.5:
            words[place] = random.choice(SYNTAX)
        else:
            words.insert(place, random.choice(SYNTAX))
    return " ".join(words).encode()


with suppress(UsageError):  # lm-eval is not installed
    catalog()  # its names are read once, which takes a second
