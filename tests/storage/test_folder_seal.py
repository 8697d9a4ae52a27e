"""The seal of a folder: whatever is changed in a sealed file or beside it is noticed and named."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from harness.storage.folder_seal import SEAL, find_damage, has_valid_seal, seal_files, with_seal

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
OBJECTS = st.dictionaries(
    st.text(), st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)
)


@settings(max_examples=30)
@given(OBJECTS)
def test_a_seal_survives_json_and_the_order_of_keys(content: dict[str, object]) -> None:
    sealed = with_seal(content)
    again = json.loads(json.dumps(dict(reversed(sealed.items())), indent=2))
    assert has_valid_seal(again)


def test_the_seal_is_the_sha256_of_canonical_json() -> None:
    expected = hashlib.sha256(b'{"a":[1,2.5,"\\u00e4"],"b":null}').hexdigest()
    assert with_seal({"b": None, "a": [1, 2.5, "ä"]})[SEAL] == expected


def test_every_flipped_bit_of_a_sealed_text_is_noticed() -> None:
    text = json.dumps(with_seal({"values": [1.25, 3], "name": "a", "inner": {"b": False}})).encode()
    unnoticed = []
    for position in range(8 * len(text)):
        flipped = bytearray(text)
        flipped[position // 8] ^= 1 << position % 8
        try:
            content = json.loads(flipped.decode())
        except ValueError:
            continue
        if isinstance(content, dict) and has_valid_seal(content):
            unnoticed.append(position)
    assert unnoticed == []


def test_damage_beside_it_is_named(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "inner/d"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"content")
    sealed = seal_files(tmp_path)
    assert [(file.path, file.bytes) for file in sealed] == [("a", 7), ("b", 7), ("c", 7), ("inner/d", 7)]
    assert {file.sha256 for file in sealed} == {hashlib.sha256(b"content").hexdigest()}
    assert list(find_damage(tmp_path, sealed, read_data=True)) == []
    (tmp_path / "a").write_bytes(b"another")
    (tmp_path / "b").write_bytes(b"cut")
    (tmp_path / "c").unlink()
    os.mkfifo(tmp_path / "c")
    (tmp_path / "inner" / "d").unlink()
    (tmp_path / "inner" / "e").touch()
    (tmp_path / ".hidden").touch()
    by_size = [
        f"{tmp_path}/b: 3 bytes, but 7 when it was written",
        f"{tmp_path}/c: not a regular file",
        f"{tmp_path}/inner/d: missing",
        f"{tmp_path}/inner/e: was added later",
    ]
    assert list(find_damage(tmp_path, sealed, read_data=False)) == by_size
    content = f"{tmp_path}/a: its content is not what was written (another sha256)"
    assert list(find_damage(tmp_path, sealed, read_data=True)) == [content, *by_size]


def test_a_stored_path_outside_the_folder_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"secret")
    (tmp_path / "folder").mkdir()
    (sealed,) = (file for file in seal_files(tmp_path) if file.path == "outside")
    for path in ("../outside", f"{tmp_path}/outside", "./../outside", "a\0b", ""):
        moved = type(sealed)(path, sealed.bytes, sealed.sha256)
        (damage,) = find_damage(tmp_path / "folder", [moved], read_data=True)
        assert damage.endswith("not a path inside its folder")
