"""The compiled library in its cache, damaged in every way that was seen."""

import ctypes
import shutil
from pathlib import Path

import pytest

from kaconv.ops import native

pytestmark = pytest.mark.skipif(native.library() is None, reason="there is no C++ compiler for the fused backend")

DAMAGES = {
    "truncated": lambda library, digest: library.write_bytes(library.read_bytes()[:5000]),
    "overwritten": lambda library, digest: library.write_bytes(b"\xff" * library.stat().st_size),
    "a flipped byte": lambda library, digest: library.write_bytes(flipped(library.read_bytes())),
    "empty": lambda library, digest: library.write_bytes(b""),
    "gone": lambda library, digest: library.unlink(),
    "no checksum": lambda library, digest: digest.unlink(),
    "an empty checksum": lambda library, digest: digest.write_bytes(b""),
    "garbage for a checksum": lambda library, digest: digest.write_bytes(b"\xff\xfe"),
}


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A cached library, built for these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return native._built()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_library_is_built_again(damage, built, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    shutil.copytree(built.parent, tmp_path / "kaconv")
    library = tmp_path / "kaconv" / built.name
    DAMAGES[damage](library, library.with_suffix(".sha256"))
    compiled = []

    def compile_again(compiler, flags, path):  # the compiler's result is at hand
        compiled.append(path)
        for suffix in (".so", ".sha256"):
            shutil.copy(built.with_suffix(suffix), path.with_suffix(suffix))

    monkeypatch.setattr(native, "_compile", compile_again)
    assert native._built() == library
    assert compiled == [library]
    assert library.read_bytes() == built.read_bytes()
    ctypes.CDLL(str(native._built()))
    assert compiled == [library]  # it is whole now


def test_nothing_but_the_library_and_its_checksum_is_left(built):
    assert sorted(path.name for path in built.parent.iterdir()) == [f"{built.stem}.sha256", built.name]
