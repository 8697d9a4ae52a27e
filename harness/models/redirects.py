"""Checkpoints that make transformers read more than their own weights: files that are not hashed, or code.

Seen with transformers 5.17: an adapter in the folder is added to the model, and pickled if it has no other form;
``transformers_weights`` names another file of weights; an attention implementation with a slash is compiled code from
a hub, for which ``trust_remote_code`` is not asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.core.foreign import quoted, shown
from harness.errors import SourceError

ADAPTER = "adapter_config.json"
WEIGHTS = "transformers_weights"
ATTENTION = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")


def refuse_redirects(folder: Path, config: Mapping[str, Any]) -> None:
    """Raises SourceError, with what to do, for a checkpoint that makes transformers read something else as well."""
    if (folder / ADAPTER).exists():
        raise SourceError(
            f"{shown(folder)}: contains an adapter ({ADAPTER}), whose weights would be added to the model; merge it, "
            "or move its files away"
        )
    for part in _parts(config):
        if part.get(WEIGHTS) is not None:
            raise SourceError(
                f"{shown(folder)}: its config.json names other weights ({WEIGHTS}: {quoted(part[WEIGHTS])}); rename "
                "them to model.safetensors and remove the key"
            )
        for key in ATTENTION:
            named = part.get(key)
            for each in named.values() if isinstance(named, dict) else [named]:
                if isinstance(each, str) and "/" in each:
                    raise SourceError(
                        f"{shown(folder)}: its config.json names attention code on a hub ({key}: {quoted(each)}), "
                        "which is not run; remove the key, and choose with the recipe's 'attention'"
                    )


def _parts(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A configuration and those inside it, at any depth: the talker of a thinker has a text model of its own."""
    yield config
    for each in config.values():
        if isinstance(each, dict):
            yield from _parts(each)
