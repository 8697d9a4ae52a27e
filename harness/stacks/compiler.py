"""What this machine's C++ compiler gets wrong, and the flags with which a library is compiled right nevertheless."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from functools import cache

WITHOUT_AMX = ("-mno-amx-tile", "-mno-amx-int8", "-mno-amx-bf16")
_MENDED = {11: (11, 5), 12: (12, 4), 13: (13, 3)}


def needed_flags() -> tuple[str, ...]:
    """The flags that a library with kernels for the processor at hand needs of the compiler at hand."""
    return WITHOUT_AMX if _breaks_amx(os.environ.get("CXX") or "c++") else ()


@cache
def _breaks_amx(compiler: str) -> bool:
    """Whether it compiles for this processor's AMX, and is a GCC that leaves out the settings of its tiles.

    llama.cpp then ends by SIGILL at its first product of quantized weights (GCC's bug 114098, mended in 11.5, 12.4,
    13.3 and 14).
    """
    try:
        command = [*shlex.split(compiler), "-march=native", "-dM", "-E", "-x", "c++", "-"]
        answer = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True).stdout
    except (OSError, ValueError, subprocess.CalledProcessError):  # ValueError: no words, as of an open quotation
        return False  # what compiles will say so
    macros = dict(re.findall(r"#define (__AMX_TILE__|__clang__|__GNUC__|__GNUC_MINOR__) (\d+)", answer))
    if "__AMX_TILE__" not in macros or "__clang__" in macros:
        return False
    version = int(macros["__GNUC__"]), int(macros["__GNUC_MINOR__"])
    return version < _MENDED.get(version[0], (14, 0))
