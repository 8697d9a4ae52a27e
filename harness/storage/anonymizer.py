"""What a machine would tell about its user, taken out of everything that is stored: paths, names, secrets.

Stored paths start at the recipe's folder, at ``~`` or at another named folder (``$ENV/lib/…``), so a record reads the
same on every machine and says neither who ran it nor where. Nothing here changes an id: models, texts and tasks are
identified by content, and what a recipe's author wrote as a parameter stays as it is.

``Store`` and ``Cache`` apply this to what they write. Workers get specs with the real paths.
"""

from __future__ import annotations

import json
import os
import platform
import pwd
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from harness.core.label import Fact, Label
from harness.core.model import MethodRef, ModelRef
from harness.core.parts import with_parts
from harness.core.record import Damaged, Failure, Fingerprint, Measurement, Outcome, RunRecord
from harness.core.run import RunSpec
from harness.core.workload import TaskWorkload, TextRef

SECRET_NAME = re.compile(r"TOKEN(?!IZER)|KEY|SECRET|PASSW|CREDENTIAL|AUTH|COOKIE", re.IGNORECASE)
"""Environment variables with such a name hold secrets; a tokenizer's name is none."""
SHORTEST_SECRET_CHARACTERS = 8
"""Shorter values of such variables (``1``, ``none``) occur in ordinary text."""
SHORTEST_NAME_CHARACTERS = 4
COMMON_NAMES = frozenset(
    re.findall(
        r"\w+",
        "admin build builder centos cloud container data debian default docker fedora guest home host jenkins jupyter "
        "linux local localhost machine main model models node nobody nvidia python root runner server student system "
        "test tester ubuntu user users vagrant vm work worker workspace",
    )
)
"""Names of users and machines that identify nobody and are words of ordinary text.

These and names below the shortest length are replaced only where they are part of a path, a URL or ``user@host``.
"""
_LOGINS = ("USER", "LOGNAME", "USERNAME", "SUDO_USER")
_TOKENS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|gh[a-z]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|sk-[\w-]{20,}|xox[a-z]-[\w-]{10,}|AKIA[A-Z0-9]{16})"
    r"|(?<=Bearer )[\w.~+/=-]{8,}"
)
"""Tokens by their form: a library may have read one from a file."""
_URL_LOGIN = re.compile(r"(?<=://)[^\s/@\"']+(?=@)")
_URL_SECRET = re.compile(
    r"([?&][\w.-]*(?:token|key|secret|passw|credential|auth|signature)[\w.-]*=)[^&\s\"'<>]+", re.IGNORECASE
)
_HIDDEN = "$SECRET"


@dataclass(frozen=True)
class Anonymizer:
    """What to replace.

    ``places`` are absolute paths and what stands for each. ``logins`` and ``hosts`` are the names of the user and the
    machine. ``secrets`` are values and the variable that each comes from.
    """

    places: Mapping[str, str]
    logins: frozenset[str] = frozenset()
    hosts: frozenset[str] = frozenset()
    secrets: Mapping[str, str] | None = None

    @classmethod
    def here(
        cls, recipe: Path | None = None, cache: Path | None = None, environment: Mapping[str, str] = os.environ
    ) -> Anonymizer:
        """For this machine and its user; ``recipe`` is the recipe's folder, ``cache`` the root of the cache."""
        account = _account()
        logins = {environment.get(name, "") for name in _LOGINS} | {account.pw_name if account else ""}
        hosts = {platform.node(), environment.get("HOSTNAME", "")}
        hosts |= {name.partition(".")[0] for name in hosts}
        secrets = {
            value.strip(): f"${name}"
            for name, value in environment.items()
            if SECRET_NAME.search(name) and len(value.strip()) >= SHORTEST_SECRET_CHARACTERS
        }
        homes = [environment.get("HOME", ""), account.pw_dir if account else ""]
        return cls(
            dict(_places(recipe, cache, [home for home in homes if home])),
            frozenset(logins - {""}),
            frozenset(hosts - {"", "localhost"}),
            secrets,
        )

    @classmethod
    def for_terminals(cls) -> Anonymizer:
        """For what is printed and may be published: only the home folder has a name, which a shell understands too."""
        whole = cls.here()
        return replace(whole, places={path: name for path, name in whole.places.items() if name == "~"})

    @classmethod
    def for_nodes(cls, own_cache: Path | None = None) -> Anonymizer:
        """For what a node of a cluster sends: the machine that stores it knows the paths, but not the node's names.

        ``own_cache`` is the node's cache folder, if that is not one that it shares with that machine.
        """
        return replace(cls.here(), places=dict(_forms(own_cache, "$QHARNESS_CACHE")) if own_cache else {})

    def text(self, text: str) -> str:
        """The text without paths of this machine, secrets, and names in paths, URLs and ``user@host``."""
        return self._named.sub(self._name, self.ids(text)) if self._names else self.ids(text)

    def message(self, text: str) -> str:
        """Like ``text``, for free text of a library or the system: also without names that stand alone."""
        return self._words.sub(self._name, self.text(text)) if self._rare else self.text(text)

    def ids(self, text: str) -> str:
        """The text without paths of this machine and secrets; for ids, which must be equal on all machines."""
        text = self._secret.sub(lambda match: self._variables[match[0]], text) if self._variables else text
        text = _TOKENS.sub(_HIDDEN, _URL_SECRET.sub(rf"\1{_HIDDEN}", _URL_LOGIN.sub(_HIDDEN, text)))
        return self._place.sub(self._relative, text) if self.places else text

    def path(self, path: str) -> str:
        """A path as it is stored."""
        return self.message(path)

    def log(self, log: bytes) -> bytes:
        """The log of a process; bytes that are no UTF-8 stay."""
        return self.message(log.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")

    def record(self, record: RunRecord) -> RunRecord:
        return replace(record, spec=self.spec(record.spec), outcome=self.outcome(record.outcome))

    def damaged(self, damaged: Damaged) -> Damaged:
        path, reason = Path(self.path(str(damaged.path))), self.message(damaged.reason)
        return replace(damaged, path=path, reason=reason, url=self.path(damaged.url))

    def spec(self, spec: RunSpec) -> RunSpec:
        """The spec as it is stored; its ids are the same."""
        return with_parts(spec, self._part)

    def outcome(self, outcome: Outcome) -> Outcome:
        """The outcome as it is stored; its figures are the same. Ids that measurements share stay shared."""
        return with_parts(outcome, partial(self._finding, {}))

    def _part(self, value: Any) -> Any:
        """A part of a spec that holds paths, as it is stored; None for any other."""
        if isinstance(value, ModelRef):
            where = value.id if value.on_hub else self.path(value.id)
            return replace(value, id=where, path=self.path(value.path))
        if isinstance(value, MethodRef) and value.published is not None:
            published = self._part(value.published)
            return replace(value, params={**value.params, "id": published.id}, published=published)
        if isinstance(value, TextRef):
            return value if value.path is None else replace(value, path=self.path(value.path))
        if isinstance(value, TaskWorkload):
            data, examples = (each and self._part(each) for each in (value.data, value.fewshot_data))
            return replace(value, definition=self.path(value.definition), data=data, fewshot_data=examples)
        return None

    def _finding(self, stored: dict[int, Sequence[str]], value: Any) -> Any:
        """A part of an outcome that holds text, as it is stored; None for any other.

        ``stored`` are the ids of earlier measurements as they are stored, by the ``id`` of what they were.
        """
        if isinstance(value, Failure):
            return Failure(value.phase, value.type, self.message(value.message), self.message(value.log_tail))
        if isinstance(value, Label | Fact):
            return replace(value, arguments={name: self._scalar(each) for name, each in value.arguments.items()})
        if isinstance(value, Fingerprint):
            hardware = {
                name: self.message(each) if isinstance(each, str) else each for name, each in value.hardware.items()
            }
            software, installed, *beside = (
                {name: self.message(each) for name, each in versions.items()}
                for versions in (value.software, value.installed, *value.beside.values())
            )
            return Fingerprint(hardware, software, value.state, installed, dict(zip(value.beside, beside, strict=True)))
        if isinstance(value, Measurement):
            protocol = {
                name: self.ids(each) if isinstance(each, str) else each for name, each in value.protocol.items()
            }
            for ids in (value.item_ids, value.cluster_ids):
                if id(ids) not in stored:
                    stored[id(ids)] = self._all_ids(ids)
            items, clusters = stored[id(value.item_ids)], stored[id(value.cluster_ids)]
            return replace(value, protocol=protocol, item_ids=items, cluster_ids=clusters)
        return None

    def _scalar(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(self._scalar, value))
        return self.text(value) if isinstance(value, str) else value

    def _all_ids(self, ids: Sequence[str]) -> Sequence[str]:
        """Looks at all of them at once first: there may be a hundred thousand, and they hardly ever hold a path."""
        whole = "\n".join(ids)
        return ids if self.ids(whole) == whole else tuple(map(self.ids, ids))

    @cached_property
    def _place(self) -> re.Pattern[str]:
        """A place at the start of a path, not within a longer name."""
        longest_first = sorted(self.places, key=len, reverse=True)
        return re.compile(rf"(?<![\w.~$-])({'|'.join(map(re.escape, longest_first))})(?![\w-]|\.+\w)(/(?=[^\s/]))?")

    def _relative(self, match: re.Match[str]) -> str:
        place = self.places[match[1]]
        after_slash = match.string.endswith("/", 0, match.start())  # what follows must not become an absolute path
        return "" if place == "." and match[2] and not after_slash else place + (match[2] or "")

    @cached_property
    def _variables(self) -> dict[str, str]:
        """Each secret, as it is and as JSON and URLs write it."""
        found: dict[str, str] = {}
        for value, name in (self.secrets or {}).items():
            found |= dict.fromkeys((value, json.dumps(value)[1:-1], quote(value, safe="")), name)
        return found

    @cached_property
    def _secret(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, sorted(self._variables, key=len, reverse=True))))

    @cached_property
    def _names(self) -> dict[str, str]:
        return {**dict.fromkeys(self.hosts, "$HOST"), **dict.fromkeys(self.logins, "$USER")}

    @cached_property
    def _rare(self) -> tuple[str, ...]:
        return tuple(
            name for name in self._names if len(name) >= SHORTEST_NAME_CHARACTERS and name.lower() not in COMMON_NAMES
        )

    @cached_property
    def _named(self) -> re.Pattern[str]:
        """A name as a whole component of a path or URL, or on either side of an ``@``."""
        names = _any(self._names)
        return re.compile(rf"(?<=[/\\~@])({names})(?=[/\\:.,;)\]\"'\s]|$)|\b({names})(?=@[\w.-])")

    @cached_property
    def _words(self) -> re.Pattern[str]:
        """A rare name between characters that are neither letters nor digits."""
        return re.compile(rf"(?<![A-Za-z0-9])({_any(self._rare)})(?![A-Za-z0-9])")

    def _name(self, match: re.Match[str]) -> str:
        return self._names[next(group for group in match.groups() if group)]


def _any(names: Any) -> str:
    return "|".join(map(re.escape, sorted(names, key=len, reverse=True)))


def _places(recipe: Path | None, cache: Path | None, homes: list[str]) -> Iterator[tuple[str, str]]:
    """Absolute paths and what stands for each; of equal paths the last one counts."""
    for folder, name in (
        (Path(tempfile.gettempdir()), "$TMPDIR"),
        *((Path(home), "~") for home in homes),
        (Path(sys.prefix), "$ENV"),
        *([(cache, "$QHARNESS_CACHE")] if cache else []),
        (Path(__file__).parents[1], "$HARNESS"),
    ):
        yield from _forms(folder, name)
    if recipe is None:
        return
    for form, _ in _forms(recipe, "."):
        root = _repository(Path(form), homes)
        if root is not None:
            yield str(root), os.path.relpath(root, form)
        yield form, "."


def _forms(folder: Path, name: str) -> Iterator[tuple[str, str]]:
    """The folder as written and without links. The root of the file system stands for nothing."""
    for form in dict.fromkeys((os.path.abspath(folder), os.path.realpath(folder))):  # noqa: PTH100 - not resolved
        if form != "/":
            yield form, name


def _repository(folder: Path, homes: list[str]) -> Path | None:
    """The repository that a folder is in. A home folder, or one above it, is none."""
    outside = {each for home in homes for each in (Path(home), *Path(home).parents)}
    root = next((each for each in (folder, *folder.parents) if (each / ".git").exists()), None)
    return None if root is None or root in outside or root == folder else root


def _account() -> pwd.struct_passwd | None:
    """The account that this process runs as; a container may run as a user without one."""
    try:
        return pwd.getpwuid(os.getuid())
    except KeyError:
        return None
