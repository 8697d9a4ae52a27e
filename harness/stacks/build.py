"""Creates, checks and removes a stack's environment, with uv if available and otherwise with venv and pip."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from ast import literal_eval
from base64 import urlsafe_b64encode
from collections import deque
from collections.abc import Callable, Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path

from filelock import FileLock

from harness.core.owner import temporary_folder
from harness.errors import UsageError
from harness.stacks import MANIFEST, Stack, Stacks, ask_versions
from harness.stacks.pins import Pin, Pins, has_hashes, missing, read_pins, requirements
from harness.stacks.variables import for_workers
from harness.storage.disk import Disk
from harness.storage.folder_seal import with_seal

TAIL_LINES = 12
SIGN_OF_LIFE_S = 30.0
"""The interval at which progress of a running installer is reported."""
CHECK_S = 300.0
"""How long a worker's imports, or a stack's program, may take to start."""
_UV_VARIABLES = {"find-links": "UV_FIND_LINKS", "cert": "SSL_CERT_FILE", "index-url": "UV_DEFAULT_INDEX"}
"""pip settings that uv does not read, and the variables that it reads instead."""
_WORKER_NEEDS = """
import pkgutil, importlib
import harness.execution.worker, harness.execution.jobs as jobs, {module}
for job in pkgutil.iter_modules(jobs.__path__):
    importlib.import_module(jobs.__name__ + "." + job.name)
"""
"""What a worker imports, whatever its job."""
_LIST_REQUIREMENTS = (
    "import json; from importlib.metadata import distributions as d; "
    "print(json.dumps({x.metadata['Name']: x.requires or [] for x in d() if x.metadata['Name']}))"
)
_OTHER_HASH = re.compile(r"hash mismatch|do not match the hashes", re.IGNORECASE)
"""How uv and pip report a file whose hash is not among those listed."""


def create(stack: Stack, say: Callable[[str], None]) -> None:
    """Creates the stack's environment. Raises UsageError, with the installer's last lines, if that fails.

    Only files whose hashes its pins list are installed; pins without any hash are installed as they are, which is said.
    The manifest is written last: a folder without one is incomplete. After an error there is no folder.
    """
    stack.folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(stack.folder.with_suffix(".lock")):
        if stack.find_state() == "ready":
            return
        shutil.rmtree(stack.folder, ignore_errors=True)
        try:
            _install(stack, say)
            if stack.definition.alias:
                _register(stack)
            made = {"versions": ask_versions(stack.python), "compiler_flags": stack.definition.compiler_flags()}
            Disk().write_whole(stack.folder / MANIFEST, json.dumps(with_seal(made), indent=1).encode())
        except UsageError:
            shutil.rmtree(stack.folder, ignore_errors=True)
            raise
        except (OSError, subprocess.SubprocessError) as error:
            shutil.rmtree(stack.folder, ignore_errors=True)
            raise UsageError(f"stack {stack.name!r} was not created: {error}") from error


def _install(stack: Stack, say: Callable[[str], None]) -> None:
    definition = stack.definition
    hashed = has_hashes(definition.requirements)
    pins = read_pins(definition.requirements, definition.library) if hashed else None
    uv = uv_command()
    install = [*uv, "pip", "install", "--python", str(stack.python)] if uv else _pip(stack)
    venv = [*uv, "venv", "--python", sys.executable] if uv else [sys.executable, "-m", "venv"]
    say(f"creating stack {stack.name} with {'uv' if uv else 'pip'} in {stack.folder}")
    _call([*venv, str(stack.folder)], stack, say)
    last = [*install, "--verbose", "--no-build-isolation", "--no-deps"]
    if definition.cmake_args:
        last.append("--no-cache-dir")  # a library that was compiled otherwise is cached under the same name
    if pins is None:
        say(f"{definition.requirements.name} lists no hashes: what is downloaded is not checked")
        _call([*install, "-r", str(definition.requirements)], stack, say)
        say(f"building {definition.library}")
        _call([*last, definition.library], stack, say)
        return
    exactly = [*install, "--no-deps"]
    _install_pins(exactly, _with_local_builds(pins, uv), stack, say)
    available = {pin.name: pin for pin in pins.if_required}
    while more := missing(_ask_requirements(stack.python)):
        if unknown := sorted(more - set(available)):
            raise UsageError(
                f"{definition.requirements.name} does not pin {', '.join(unknown)}, which a pinned package requires "
                f"here; qharness stack lock {stack.name} adds it"
            )
        _install_pins(exactly, [available.pop(name) for name in sorted(more)], stack, say)
    say(f"building {definition.library}")
    _install_pins(last, [pins.library], stack, say)


def _with_local_builds(pins: Pins, uv: Sequence[str]) -> tuple[Pin, ...]:
    """The packages, with the local builds that the installer finds here in the place of those of the index.

    They must be named: uv takes no local build for a version with hashes, and pip prefers the index, whose links have
    hashes too.
    """
    local = {pin.public: pin for pin in pins.local}
    if not local:
        return pins.packages
    if uv:
        command = [*uv, "pip", "compile", "--quiet", "--no-deps", "--no-header", "--no-annotate", "-"]
    else:
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps", "--quiet"]
        command += ["--report", "-", *local]
    asked = "\n".join(local) if uv else None
    answer = subprocess.run(
        command, input=asked, capture_output=True, text=True, check=False, env=installer_settings()
    ).stdout
    found = {public for public, pin in local.items() if re.search(rf"{re.escape(pin.version)}(?![\w.+])", answer)}
    return tuple(local[pin.requirement] if pin.requirement in found else pin for pin in pins.packages)


def _install_pins(install: Sequence[str], pins: Sequence[Pin], stack: Stack, say: Callable[[str], None]) -> None:
    """Installs these packages, and only from files with one of their hashes."""
    with temporary_folder() as folder:
        (folder / "pins.txt").write_text(requirements(pins), encoding="utf-8")
        _call([*install, "--require-hashes", "-r", str(folder / "pins.txt")], stack, say)


def _register(stack: Stack) -> None:
    """Registers the library under its alias too: metadata of a package that has no files and requires the library.

    https://packaging.python.org/en/latest/specifications/recording-installed-packages
    """
    name, _, version = stack.definition.alias.partition("==")
    ask = [str(stack.python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = Path(subprocess.run(ask, capture_output=True, text=True, check=True, timeout=60).stdout.strip())
    library = stack.definition.library
    wheel = "Wheel-Version: 1.0\nGenerator: qharness\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Dist: {library}\n"
    info = packages / f"{name}-{version}.dist-info"
    info.mkdir()
    record = ""
    for file, content in {"METADATA": metadata, "WHEEL": wheel, "INSTALLER": "qharness\n"}.items():
        (info / file).write_text(content, encoding="utf-8")
        digest = urlsafe_b64encode(sha256(content.encode()).digest()).decode().rstrip("=")
        record += f"{info.name}/{file},sha256={digest},{len(content.encode())}\n"
    (info / "RECORD").write_text(f"{record}{info.name}/RECORD,,\n", encoding="utf-8")


def _ask_requirements(python: Path) -> dict[str, list[str]]:
    """What each package of an interpreter requires."""
    answer = subprocess.run([python, "-c", _LIST_REQUIREMENTS], capture_output=True, text=True, check=True, timeout=60)
    required: dict[str, list[str]] = json.loads(answer.stdout)
    return required


def check(stack: Stack) -> list[str]:
    """The faults of a stack, one line each."""
    obstacle = stack.find_obstacle()
    if obstacle:
        return [obstacle]
    faults = []
    if stack.own_python is None and (changed := _changed(stack)):
        faults.append(f"changed since it was created: {', '.join(changed)}; run qharness stack remove {stack.name}")
    worker = [str(stack.python), "-c", _WORKER_NEEDS.format(module=stack.definition.module)]
    if reason := _find_failure(worker):
        faults.append(f"a worker cannot start in it: {reason}")
    if stack.definition.program:
        name, *arguments = stack.definition.program
        if reason := _find_failure([str(stack.python.with_name(name)), *arguments]):
            faults.append(f"{' '.join(stack.definition.program)} fails in it: {reason}")
    return faults


def _find_failure(command: Sequence[str]) -> str | None:
    """Why a command fails in the environment of a worker, in one line, or None."""
    with temporary_folder() as folder:
        variables = environment(folder)
        try:
            tried = subprocess.run(
                command, capture_output=True, text=True, check=False, env=variables, cwd=folder, timeout=CHECK_S
            )
        except OSError as error:
            return str(error)
        except subprocess.TimeoutExpired:
            return f"no answer within {CHECK_S:.0f} s"
    if not tried.returncode:
        return None
    return (tried.stderr.strip().splitlines() or [f"exit code {tried.returncode}"])[-1]


def remove(stack: Stack) -> bool:
    """Deletes a stack's folder; False if there is none. Never touches a user's own interpreter."""
    if not stack.folder.exists():
        return False
    with FileLock(stack.folder.with_suffix(".lock")):
        shutil.rmtree(stack.folder, ignore_errors=True)
    return True


def remove_obsolete(stacks: Stacks, name: str) -> list[Path]:
    """Deletes the folders of a stack that were made from other pins, and returns them."""
    folders = stacks.find_obsolete(name)
    for folder in folders:
        with FileLock(folder.with_suffix(".lock")):
            shutil.rmtree(folder, ignore_errors=True)
    return folders


def environment(folder: Path) -> dict[str, str]:
    """The variables of a worker in a stack: it can import the harness, but no other package of the main environment.

    Creates a link to the harness in ``folder`` and adds it to the path.
    """
    link = folder / "harness-alone" / "harness"
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(Path(__file__).resolve().parent.parent, target_is_directory=True)
    return {**for_workers(), "PYTHONPATH": str(link.parent), "PYTHONSAFEPATH": "1"}


def _changed(stack: Stack) -> list[str]:
    """The packages whose versions differ from the manifest."""
    made, now = stack.read_versions(), ask_versions(stack.python)
    return sorted(name for name in {*made, *now} if now.get(name) != made.get(name))


def _call(command: Sequence[str], stack: Stack, say: Callable[[str], None]) -> None:
    """Runs an installer and reports progress from time to time. Raises UsageError if it fails."""
    newest_lines: deque[str] = deque(maxlen=TAIL_LINES)
    tampered = False
    ended = threading.Event()
    watcher = threading.Thread(target=_say_now_and_then, args=(ended, newest_lines, say), daemon=True)
    output, settings = subprocess.PIPE, {**installer_settings(), **_compiler_settings(stack)}
    try:
        with subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, text=True, env=settings) as process:
            watcher.start()
            for line in process.stdout or ():
                tampered = tampered or _OTHER_HASH.search(line) is not None
                if line.strip():
                    newest_lines.append(line.rstrip())
    finally:
        ended.set()
    if process.returncode:
        tail = "\n".join(newest_lines)
        if tampered:
            raise UsageError(
                f"{tail}\nstack {stack.name!r} was not created: a downloaded file is not one of those that "
                f"{stack.definition.requirements.name} lists by its hash (see above). Someone may have exchanged it: "
                "do not install it by other means before you know why it differs"
            )
        raise UsageError(
            f"{tail}\nstack {stack.name!r} could not be created from {stack.definition.requirements.name} (see above); "
            "is a package index reachable? Alternatively, name an interpreter that has its packages: "
            f"--python {stack.name}=PATH"
        )


def _say_now_and_then(ended: threading.Event, newest_lines: deque[str], say: Callable[[str], None]) -> None:
    began = time.monotonic()
    while not ended.wait(SIGN_OF_LIFE_S):
        last = f": {_shown(newest_lines[-1])}" if newest_lines else ""
        say(f"  running for {time.monotonic() - began:.0f} s{last}")


def _shown(line: str) -> str:
    """An installer's line, reduced to the step number for a compiler's."""
    step = re.search(r"\[(\d+)/(\d+)\]", line)
    return f"step {step[1]} of {step[2]}" if step else line.strip()[:100]


def uv_command() -> list[str]:
    """The uv command, on the path or next to this interpreter; empty if there is none."""
    found = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    return [found] if found else []


def _pip(stack: Stack) -> list[str]:
    return [str(stack.python), "-m", "pip", "install"]


def installer_settings() -> dict[str, str]:
    """The environment that gives uv the settings of pip."""
    variables = dict(os.environ)
    configured = _pip_settings()
    for setting, variable in _UV_VARIABLES.items():
        for place in (":env:", "global"):
            if f"{place}.{setting}" in configured:
                variables.setdefault(variable, configured[f"{place}.{setting}"])
    return variables


def _compiler_settings(stack: Stack) -> dict[str, str]:
    """CMAKE_ARGS with those of the stack after the user's own, which may choose a GPU's backend; and compiler flags."""
    added: dict[str, Sequence[str]] = {}
    if stack.definition.cmake_args:
        added["CMAKE_ARGS"] = stack.definition.cmake_args
        if flags := stack.definition.compiler_flags():
            added |= dict.fromkeys(("CFLAGS", "CXXFLAGS"), flags)
    return {name: " ".join([*os.environ.get(name, "").split(), *own]) for name, own in added.items()}


@cache
def _pip_settings() -> dict[str, str]:
    """pip's configuration, by section and name (``global.cert``)."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    lines = (line.partition("=") for line in listed.splitlines())
    return {name: str(literal_eval(value)) for name, _, value in lines}
