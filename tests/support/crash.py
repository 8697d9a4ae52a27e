"""What a machine that stops may leave on its disk: every state that the operations of a ``Disk`` allow.

``RecordingDisk`` logs the system calls of whatever writes through it. ``crash_states`` takes every prefix of them,
drops what was not yet synced in every way that POSIX and Linux's file systems allow, and yields the resulting trees:

- The content of a file that was not synced may be empty, cut or whole; if it replaced other content, also that.
- A name that was added or removed may be there or not until its folder was synced. So may a rename, which is one step.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harness.storage.disk import Disk

Tree = Mapping[str, bytes | None]
"""Relative paths: a file's content, or None for a folder."""
MAX_PENDING = 12
"""Operations that wait for a sync at one moment; each doubles the number of states."""


@dataclass(frozen=True)
class Call:
    """A system call: mkdir, write, fsync, rename, unlink or rmdir. ``target`` is the new name of a rename."""

    name: str
    path: str
    target: str = ""
    content: bytes = b""


class RecordingDisk(Disk):
    """Does what it is told below a root, and logs it. Files that something else wrote are logged when they are seen."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.before = read_tree(root)
        self.calls: list[Call] = []
        self._now = dict(self.before)

    def _log(self, call: str, path: Path, target: Path | None = None, content: bytes = b"") -> None:
        self.calls.append(Call(call, self._name(path), self._name(target) if target else "", content))

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _see(self) -> None:
        """Logs what was written by something else, such as a library that fills a folder."""
        for path, content in read_tree(self.root).items():
            if path not in self._now or self._now[path] != content:
                self.calls.append(Call("mkdir" if content is None else "write", path, content=content or b""))

    def _seen(self) -> None:
        self._now = dict(read_tree(self.root))

    def _mkdir(self, path: Path, mode: int) -> None:
        self._see()
        super()._mkdir(path, mode)
        self._log("mkdir", path)
        self._seen()

    def _write(self, path: Path, content: bytes) -> None:
        self._see()
        super()._write(path, content)
        self._log("write", path, content=content)
        self._seen()

    def _fsync(self, path: Path) -> None:
        self._see()
        super()._fsync(path)
        if path == self.root or path.is_relative_to(self.root):
            self._log("fsync", path)
        self._seen()

    def _rename(self, source: Path, target: Path) -> None:
        self._see()
        super()._rename(source, target)
        self._log("rename", source, target)
        self._seen()

    def _delete(self, path: Path) -> None:
        self._see()
        own = self._name(path)
        inside = [name for name in self._now if name == own or name.startswith(f"{own}/")]
        super()._delete(path)
        for name in sorted(inside, reverse=True):
            self.calls.append(Call("rmdir" if self._now[name] is None else "unlink", name))
        self._seen()


def read_tree(root: Path) -> dict[str, bytes | None]:
    """Everything below a folder; lock files are left out, because they are empty and nothing depends on them."""
    return {
        path.relative_to(root).as_posix(): None if path.is_dir() else path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.name != ".lock"
    }


def write_tree(root: Path, tree: Tree) -> None:
    for path, content in sorted(tree.items()):
        if content is None:
            (root / path).mkdir(mode=0o700)
        else:
            (root / path).write_bytes(content)


@dataclass(eq=False)
class _Node:
    """A file or a folder, whatever its name is at the moment."""

    entries: dict[str, _Node] | None = None
    content: bytes = b""
    contents: list[bytes] = field(default_factory=list)

    def walk(self, names: list[str]) -> _Node:
        node = self
        for name in names:
            assert node.entries is not None
            node = node.entries[name]
        return node


Effect = tuple[_Node, str, _Node | None]
"""A folder, a name in it, and what the name stands for from now on."""


class _FileSystem:
    """The tree as programs see it, and what of it is sure to be on the disk.

    ``pending`` are the steps that a crash may undo, each alone: names added, removed or changed at once by a rename.
    ``contents`` of a file are those that a crash may leave.
    """

    def __init__(self, tree: Tree) -> None:
        self.now = _Node({})
        self.durable: dict[_Node, dict[str, _Node]] = {self.now: {}}
        self.pending: list[list[Effect]] = []
        for path, content in sorted(tree.items()):
            self.do(Call("mkdir" if content is None else "write", path, content=content or b""))
        for node in list(self.durable):
            self._sync(node)
        for node in self._files():
            node.contents = [node.content]

    def _files(self) -> Iterator[_Node]:
        stack = [self.now]
        while stack:
            node = stack.pop()
            if node.entries is None:
                yield node
            else:
                stack += node.entries.values()

    def do(self, call: Call) -> None:
        names = call.path.split("/") if call.path != "." else []
        if call.name == "fsync":
            self._sync(self.now.walk(names))
            return
        folder = self.now.walk(names[:-1])
        assert folder.entries is not None
        present = folder.entries.get(names[-1])
        if call.name == "write" and present is not None:
            present.contents += _cuts(call.content)
            present.content = call.content
        elif call.name in ("mkdir", "write"):
            if present is not None:
                return  # mkdir of a folder that exists
            node = _Node({} if call.name == "mkdir" else None, call.content, _cuts(call.content))
            if call.name == "mkdir":
                self.durable[node] = {}
            self._step([(folder, names[-1], node)])
        elif call.name == "rename":
            *parents, name = call.target.split("/")
            assert present is not None
            self._step([(folder, names[-1], None), (self.now.walk(parents), name, present)])
        else:
            self._step([(folder, names[-1], None)])

    def _step(self, effects: list[Effect]) -> None:
        for folder, name, node in effects:
            assert folder.entries is not None
            _apply(folder.entries, name, node)
        self.pending.append(effects)

    def _sync(self, node: _Node) -> None:
        if node.entries is None:
            node.contents = [node.content]
            return
        for effects in [each for each in self.pending if any(folder is node for folder, _, _ in each)]:
            for folder, name, target in effects:
                _apply(self.durable[folder], name, target)
            self.pending.remove(effects)
        reachable = {self.now, *_folders(self.now, self.durable)}
        self.pending = [each for each in self.pending if any(folder in reachable for folder, _, _ in each)]

    def crashes(self) -> Iterator[Tree]:
        """Every tree that may be on the disk if the machine stops now."""
        assert len(self.pending) <= MAX_PENDING, f"{len(self.pending)} steps are not synced: too many to try"
        for kept in itertools.product((False, True), repeat=len(self.pending)):
            entries = {folder: dict(names) for folder, names in self.durable.items()}
            for effects in itertools.compress(self.pending, kept):
                for folder, name, node in effects:
                    _apply(entries[folder], name, node)
            paths = dict(_paths(self.now, entries, ""))
            files = [node for node in paths.values() if node.entries is None]
            for contents in itertools.product(*(dict.fromkeys(node.contents) for node in files)):
                content = dict(zip(files, contents, strict=True))
                yield {path: content.get(node) for path, node in paths.items()}


def _folders(folder: _Node, durable: Mapping[_Node, Mapping[str, _Node]]) -> Iterator[_Node]:
    """The folders below one, in the tree as it is and as it is on the disk: changes in any other are never seen."""
    for node in {*(folder.entries or {}).values(), *durable[folder].values()}:
        if node.entries is not None:
            yield node
            yield from _folders(node, durable)


def _cuts(content: bytes) -> list[bytes]:
    return list(dict.fromkeys((b"", content[: len(content) // 2], content)))


def _apply(entries: dict[str, _Node], name: str, node: _Node | None) -> None:
    if node is None:
        entries.pop(name, None)
    else:
        entries[name] = node


def _paths(folder: _Node, entries: Mapping[_Node, Mapping[str, _Node]], prefix: str) -> Iterator[tuple[str, _Node]]:
    for name, node in entries[folder].items():
        yield f"{prefix}{name}", node
        if node.entries is not None:
            yield from _paths(node, entries, f"{prefix}{name}/")


def crash_states(disk: RecordingDisk) -> Iterator[tuple[int, Tree]]:
    """The number of calls that were made, and a tree that a crash after them may leave; each tree once per number."""
    system = _FileSystem(disk.before)
    for count in range(len(disk.calls) + 1):
        if count:
            system.do(disk.calls[count - 1])
        seen = set()
        for tree in system.crashes():
            key = tuple(sorted(tree.items()))
            if key not in seen:
                seen.add(key)
                yield count, tree
