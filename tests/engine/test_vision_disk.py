"""Vision tokens on disk: there after a restart, whole or absent, bounded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from internvl.engine.settings import EngineSettings
from internvl.engine.towers import fingerprint
from internvl.engine.vision_disk import VisionDisk
from internvl.errors import EngineError, InputError
from internvl.models.vlm import VLM
from tests.engine.tiny import expected, finish, ids_of, make_engine, make_image, make_request, make_vlm


def tokens(value: float) -> torch.Tensor:
    return torch.full((4, 16), value)


def files(directory: Path) -> list[Path]:
    return sorted(directory.iterdir())


def test_what_is_kept_is_found_by_the_next_process(tmp_path: Path) -> None:
    VisionDisk(tmp_path / "new", b"model", 10_000).keep(b"a", tokens(1))
    again = VisionDisk(tmp_path / "new", b"model", 10_000)
    found = again.find(b"a")
    assert found is not None
    assert torch.equal(found, tokens(1))
    assert again.find(b"b") is None
    assert VisionDisk(tmp_path / "new", b"other", 10_000).find(b"a") is None
    assert again.num_bytes == files(tmp_path / "new")[0].stat().st_size


def test_least_recently_used_files_go_first(tmp_path: Path) -> None:
    VisionDisk(tmp_path / "one", b"", 10_000).keep(b"a", tokens(0))
    limit = int(3.5 * files(tmp_path / "one")[0].stat().st_size)
    tmp_path /= "all"
    disk = VisionDisk(tmp_path, b"", limit)
    for number, name in enumerate((b"a", b"b", b"c", b"a", b"d")):
        if disk.find(name) is None:
            disk.keep(name, tokens(number))
        for path in files(tmp_path):
            os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns - 10**9))
    assert [disk.find(name) is not None for name in (b"a", b"b", b"c", b"d")] == [True, False, True, True]
    assert sum(path.stat().st_size for path in files(tmp_path)) == disk.num_bytes <= limit


def test_broken_files_count_as_absent(tmp_path: Path) -> None:
    disk = VisionDisk(tmp_path, b"", 10_000)
    disk.keep(b"a", tokens(1))
    (path,) = files(tmp_path)
    path.write_bytes(path.read_bytes()[:40])
    assert disk.find(b"a") is None
    assert (files(tmp_path), disk.num_failed) == ([], 1)
    disk.keep(b"a", tokens(2))
    assert disk.find(b"a") is not None


def test_a_full_disk_costs_the_file_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    disk = VisionDisk(tmp_path, b"", 10_000)
    disk.keep(b"a", tokens(1))
    assert (files(tmp_path), disk.num_failed, disk.find(b"a")) == ([], 1, None)


def refuse(*_: Any, **__: Any) -> None:
    raise PermissionError(13, "not yours")


def test_a_directory_that_cannot_be_written_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    VisionDisk(tmp_path, b"", 10_000).keep(b"a", tokens(1))
    for name in ("utime", "unlink", "replace", "rename"):
        monkeypatch.setattr(os, name, refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    disk = VisionDisk(tmp_path, b"", 10_000)
    found = disk.find(b"a")
    assert found is not None
    assert torch.equal(found, tokens(1))
    assert disk.num_failed == 0


def test_broken_files_that_cannot_be_removed_count_as_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = VisionDisk(tmp_path, b"", 10_000)
    disk.keep(b"a", tokens(1))
    (path,) = files(tmp_path)
    path.write_bytes(path.read_bytes()[:40])
    monkeypatch.setattr(Path, "unlink", refuse)
    assert disk.find(b"a") is None
    assert disk.num_failed == 1


def test_files_that_cannot_be_removed_end_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    VisionDisk(tmp_path, b"", 10_000).keep(b"a", tokens(1))
    size = files(tmp_path)[0].stat().st_size
    disk = VisionDisk(tmp_path, b"", size + 1)
    monkeypatch.setattr(Path, "unlink", refuse)
    disk.keep(b"b", tokens(2))
    assert disk.num_failed > 0
    assert disk.num_bytes == 2 * size
    assert disk.find(b"b") is not None


def test_files_that_cannot_be_looked_at_end_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = VisionDisk(tmp_path, b"", 10_000)
    monkeypatch.setattr(Path, "stat", refuse)
    disk.keep(b"a", tokens(1))
    assert disk.num_failed == 1


def test_a_file_that_was_not_read_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = VisionDisk(tmp_path, b"", 10_000)
    disk.keep(b"a", tokens(1))
    with monkeypatch.context() as patch:
        patch.setattr("internvl.engine.vision_disk.load_file", refuse)
        assert disk.find(b"a") is None
    assert disk.num_failed == 1
    assert disk.find(b"a") is not None


def test_files_can_be_shared(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        VisionDisk(tmp_path, b"", 10_000).keep(b"a", tokens(1))
    finally:
        os.umask(before)
    assert files(tmp_path)[0].stat().st_mode & 0o777 == 0o640


def test_what_cannot_be_a_cache(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError, match="no vision cache in"):
        VisionDisk(tmp_path / "file" / "below", b"", 10)
    with pytest.raises(InputError, match="at least 1 byte, got 0"):
        VisionDisk(tmp_path, b"", 0)
    VisionDisk(tmp_path / "small", b"", 10).keep(b"a", tokens(1))
    assert files(tmp_path / "small") == []


def test_fingerprints_tell_models_apart(vlm: VLM) -> None:
    first = fingerprint(vlm)
    assert fingerprint(make_vlm()) == first
    changed = make_vlm()
    with torch.no_grad():
        changed.llm.head.weight[0, 0] += 1
    assert fingerprint(changed) == first  # the language model sees no tiles
    with torch.no_grad():
        changed.projector.fc2.bias[3] += 1
    assert fingerprint(changed) != first
    assert fingerprint(make_vlm().to(torch.bfloat16)) != first


def test_an_engine_knows_pictures_of_the_one_before_it(vlm: VLM, tmp_path: Path) -> None:
    request = make_request("a", [1, 2], [make_image(1, 2)], max_new_tokens=4)
    for turn in range(2):
        engine = make_engine(vlm, vision_directory=str(tmp_path))
        engine.submit(request)
        assert ids_of(finish(engine), "a") == expected(vlm, request).ids
        assert (engine.stats().tiles, engine.stats().vision_disk_hits) == ((2, 0), (0, 1))[turn]
    engine = make_engine(vlm, vision_directory=str(tmp_path), is_batch_invariant=True)
    engine.submit(request)
    finish(engine)
    assert engine.stats().tiles == 2
    assert EngineSettings().vision_directory is None
