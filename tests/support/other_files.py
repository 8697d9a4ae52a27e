"""Processes that see other files than this machine has, as those of another machine do: in a mount namespace."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from shlex import quote

import pytest


def seeing(seen: Mapping[Path, Path]) -> list[str]:
    """What to put before a command, so that it sees, at each path, what is at another one.

    Skips the test where mounting is not allowed.
    """
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "--mount", "true"], check=False, capture_output=True).returncode:
        pytest.skip("needs a mount namespace of its own (unshare --mount), which takes root")
    mounts = [f"mount --bind {quote(str(there))} {quote(str(at))}" for at, there in seen.items()]
    return [unshare, "--mount", "sh", "-c", " && ".join([*mounts, 'exec "$@"']), "sh"]
