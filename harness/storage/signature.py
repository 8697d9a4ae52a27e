"""Signatures by an SSH key, made and checked by OpenSSH's ``ssh-keygen -Y`` (ssh-keygen(1), PROTOCOL.sshsig)."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from harness.core.foreign import shortened, shown
from harness.core.owner import temporary_folder
from harness.errors import UsageError

NAMESPACE = "qharness-bundle"
"""What is signed: a signature of something else, such as a git commit, is none of a bundle."""
MAX_WORDS = 300
"""Characters of what ssh-keygen reports."""


@dataclass(frozen=True)
class SignatureCheck:
    """Whether a signature holds, and what ssh-keygen says of it: the key, and whose it is if that was asked."""

    holds: bool
    words: str


def sign(content: bytes, key: Path) -> bytes:
    """The signature of a content by a private key, or by the agent's if ``key`` is a public one.

    Raises UsageError if ssh-keygen is missing or refuses the key.
    """
    program = _program()
    with temporary_folder() as folder:
        file = folder / "content"
        file.write_bytes(content)
        ended = subprocess.run(
            [program, "-Y", "sign", "-q", "-f", str(key), "-n", NAMESPACE, str(file)],
            capture_output=True,
            check=False,
        )
        made = folder / "content.sig"
        if ended.returncode or not made.is_file():
            raise UsageError(f"{shown(key)}: ssh-keygen cannot sign with it: {_words(ended)}")
        return made.read_bytes()


def check_signature(content: bytes, signature: bytes, signers: Path | None = None) -> SignatureCheck:
    """Whether a signature is of this content; with ``signers`` (an ALLOWED SIGNERS file) also by one of them.

    Raises UsageError if ssh-keygen is missing, or there is no file ``signers``.
    """
    program = _program()
    if signers is not None and not signers.is_file():
        raise UsageError(f"{shown(signers)}: no such file; --signers names one of the keys that you trust")
    with temporary_folder() as folder:
        file = folder / "content.sig"
        file.write_bytes(signature)
        options = ["-n", NAMESPACE, "-s", str(file)]
        if signers is None:
            ended = _run([program, "-Y", "check-novalidate", *options], content)
            return SignatureCheck(ended.returncode == 0, _words(ended))
        found = _run([program, "-Y", "find-principals", "-f", str(signers), "-s", str(file)], b"")
        names = found.stdout.decode(errors="replace").splitlines()
        if found.returncode or not names:
            return SignatureCheck(False, f"by a key that {shown(signers)} does not list")
        ended = _run([program, "-Y", "verify", "-f", str(signers), "-I", names[0], *options], content)
        return SignatureCheck(ended.returncode == 0, _words(ended))


def _run(command: list[str], content: bytes) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command, input=content, capture_output=True, check=False)


def _words(ended: subprocess.CompletedProcess[bytes]) -> str:
    said = ended.stdout if ended.returncode == 0 else ended.stderr or ended.stdout
    return shortened(" ".join(said.decode(errors="replace").split()), MAX_WORDS)


def _program() -> str:
    program = shutil.which("ssh-keygen")
    if program is None:
        raise UsageError("signatures need OpenSSH's ssh-keygen, which is not here; install openssh-client")
    return program
