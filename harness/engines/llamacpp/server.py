"""llama.cpp's own server, ``llama-server``: continuous batching over a number of slots.

The server of the Python bindings (``python -m llama_cpp.server``) computes one request at a time, so it could not show
what a format does under load. The stack builds this one with the library, from the same source.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from harness.core.capability import Endpoint
from harness.core.engine import LoadRequest, PlannedLoad
from harness.errors import SourceError, UnsupportedError
from harness.libraries.llamacpp import CACHES
from harness.libraries.serving import HOST, SERVED_NAME, free_port, serving
from harness.models.gguf.layout import read
from harness.models.headers import weight_files

if TYPE_CHECKING:
    from harness.engines.llamacpp.engine import LlamaCppParams

FLASH = {"auto": "auto", "enabled": "on", "disabled": "off"}
ALL_LAYERS = "999"
DEFAULT_SLOT_TOKENS = 4096
"""The longest text of a slot, or the model's context if that is shorter: every slot has a cache of that length."""


@contextmanager
def serve(request: LoadRequest, params: LlamaCppParams, folder: Path) -> Iterator[Endpoint]:
    """A server for a GGUF file. See ``Serves``."""
    program, libraries = installed()
    try:
        (file,) = weight_files(request.path)
        context = read(file).context_length
    except (SourceError, OSError) as error:
        raise UnsupportedError(str(error)) from None
    port = free_port()
    url = f"http://{HOST}:{port}"
    command = [str(program), "--model", str(file), "--host", HOST, "--port", str(port), "--alias", SERVED_NAME]
    command += arguments(request, params, context)
    with serving(command, {"LD_LIBRARY_PATH": str(libraries)}, f"{url}/health", folder):
        longest = slot_tokens(params, context)
        yield Endpoint(url, SERVED_NAME, f"{url}/metrics", together=params.slots, longest_tokens=longest)


def arguments(request: LoadRequest, params: LlamaCppParams, context: int | None) -> list[str]:
    """The arguments that the variant decides.

    Nothing of an earlier prompt is kept, so that each costs what its length costs.
    """
    import torch

    each = slot_tokens(params, context)
    cache = CACHES[request.kv_cache].lower()
    threads = str(params.threads or torch.get_num_threads())
    return [
        *("--ctx-size", str(params.slots * each), "--parallel", str(params.slots)),
        *("--cache-type-k", cache, "--cache-type-v", cache, "--flash-attn", FLASH[params.flash_attention]),
        *("--threads", threads, "--threads-batch", threads, "--ubatch-size", str(params.ubatch)),
        *(("--n-gpu-layers", ALL_LAYERS) if request.device.startswith("cuda") else ()),
        *("--fit", "off", "--no-cache-prompt", "--cache-ram", "0", "--metrics", "--offline"),
    ]


def slot_tokens(params: LlamaCppParams, context: int | None) -> int:
    """The longest text of a slot, new tokens included."""
    return params.slot_tokens or min(context or DEFAULT_SLOT_TOKENS, DEFAULT_SLOT_TOKENS)


def refuses(planned: PlannedLoad, params: LlamaCppParams) -> str | None:
    """Why the server's slots cannot hold the texts of a load; None if they can, or if the run starts no server."""
    longest = slot_tokens(params, None)
    if not planned.serves or planned.tokens <= longest:
        return None
    return (
        f"prompt and new tokens of a request, {planned.tokens}, exceed the {longest} tokens that llama.cpp's server "
        "keeps in a slot; raise slot_tokens"
    )


def installed() -> tuple[Path, Path]:
    """The server that was built with the library, and the folder of the libraries that it needs.

    Raises UnsupportedError if the library was built without it.
    """
    found = find_spec("llama_cpp")
    root = Path(found.origin).parents[1] if found is not None and found.origin is not None else Path()
    program = root / "bin" / "llama-server"
    if not program.is_file():
        raise UnsupportedError(
            "llama-cpp-python was built here without llama.cpp's server: qharness stack create llamacpp builds both"
        )
    return program, root / "lib"
