"""Pulling from a hub on this machine: choice of files, resuming, the cache, and every refusal."""

from __future__ import annotations

import shutil
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from internvl.checkpoints import snapshot as snapshot_module
from internvl.checkpoints.hub import cache_directory, pull
from internvl.checkpoints.locate import resolve
from internvl.checkpoints.selection import choose_files
from internvl.checkpoints.snapshot import find_snapshot, storage_of
from internvl.errors import HubError, UnknownNameError
from tests.checkpoints.hub_server import Hub, etag_of, running_hub, shards

REPOSITORY = "OpenGVLab/InternVL2_5-1B"
BIG = "model-00001-of-00002.safetensors"
WANTED = {
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "model.safetensors.index.json",
    BIG,
    "model-00002-of-00002.safetensors",
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub with one checkpoint; the network is allowed, but only this hub and this cache are known."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(snapshot_module, "WAIT_SECONDS", 0.0)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    with running_hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        server.add(REPOSITORY, shards())
        yield server


@pytest.fixture(scope="module", autouse=True)
def _one_session() -> Iterator[None]:
    """Making a client is the slowest part of a request."""
    yield
    huggingface_hub.close_session()


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def partials(cache: Path) -> list[int]:
    return [path.stat().st_size for path in cache.rglob("*.incomplete")]


class TestPull:
    def test_takes_the_checkpoint_and_nothing_else(self, hub: Hub) -> None:
        folder = pull("InternVL2_5-1B")
        assert contents(folder) == {name: data for name, data in shards().items() if name in WANTED}
        assert folder.name == hub.commit_of_main

    def test_a_second_pull_asks_once_and_downloads_nothing(self, hub: Hub) -> None:
        first = pull(REPOSITORY)
        hub.requests.clear()
        assert pull(REPOSITORY) == first
        assert [path for _, path, _ in hub.requests] == [f"/api/models/{REPOSITORY}/revision/main"]

    def test_any_repository_can_be_pulled(self, hub: Hub) -> None:
        hub.add("somebody/finetuned.model", shards(1))
        assert (pull("somebody/finetuned.model") / "config.json").is_file()

    def test_pickled_weights_are_taken_when_there_are_no_others(self, hub: Hub) -> None:
        files = {"config.json": b"{}", "pytorch_model.bin": b"w", "training_args.bin": b"t", "m.py": b""}
        hub.add("a/b", files)
        assert set(contents(pull("a/b"))) == {"config.json", "pytorch_model.bin"}

    def test_patterns_replace_the_choice(self, hub: Hub) -> None:
        assert set(contents(pull(REPOSITORY, allow_patterns=["*.md", "examples/*", "*.py"]))) == {
            "README.md",
            "examples/image1.jpg",
        }

    def test_part_then_whole(self, hub: Hub) -> None:
        folder = pull(REPOSITORY, allow_patterns=["config.json"])
        assert set(contents(folder)) == {"config.json"}
        assert pull(REPOSITORY, allow_patterns=["config.json"], offline=True) == folder
        with pytest.raises(HubError, match=rf"the cache lacks {BIG}"):
            pull(REPOSITORY, offline=True)
        assert set(contents(pull(REPOSITORY))) == WANTED
        assert hub.counts()["config.json"] == 1

    def test_progress_reports_bytes_and_sizes(self, hub: Hub) -> None:
        seen: dict[str, list[int]] = {}
        sizes: dict[str, int | None] = {}

        def progress(file: str, done: int, size: int | None) -> None:
            seen.setdefault(file, []).append(done)
            sizes[file] = size

        pull(REPOSITORY, progress=progress)
        assert set(seen) == WANTED
        assert seen[BIG] == sorted(seen[BIG])
        assert seen[BIG][-1] == sizes[BIG] == 300_000

    def test_nothing_is_printed(self, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
        pull(REPOSITORY)
        assert capsys.readouterr() == ("", "")

    def test_other_libraries_find_the_files(self, hub: Hub, tmp_path: Path) -> None:
        folder = pull(REPOSITORY)
        found = huggingface_hub.try_to_load_from_cache(REPOSITORY, BIG, cache_dir=tmp_path / "cache")
        assert found == str(folder / BIG)

    def test_equal_files_of_two_commits_are_stored_once(self, hub: Hub) -> None:
        pull(REPOSITORY)
        newer = hub.add(REPOSITORY, shards() | {"config.json": b'{"new": 1}'}, "b" * 40)
        assert (pull(REPOSITORY, revision=newer) / "config.json").read_bytes() == b'{"new": 1}'
        assert hub.counts()[BIG] == 1


class TestResuming:
    def test_a_cut_connection_is_taken_up_where_it_broke(self, hub: Hub) -> None:
        hub.cuts[BIG] = [100_000, 50_000]
        folder = pull(REPOSITORY)
        assert (folder / BIG).read_bytes() == shards()[BIG]
        assert hub.ranges(BIG) == ["", "bytes=100000-", "bytes=150000-"]

    def test_a_later_run_continues_the_file(
        self, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(snapshot_module, "RETRIES", 0)
        hub.cuts[BIG] = [100_000]
        with pytest.raises(HubError, match=rf"broke off at {BIG}.*pull again to continue"):
            pull(REPOSITORY)
        assert partials(tmp_path) == [100_000]
        hub.requests.clear()
        folder = pull(REPOSITORY)
        assert hub.ranges(BIG) == ["bytes=100000-"]
        assert hub.counts()["config.json"] == 0
        assert (folder / BIG).read_bytes() == shards()[BIG]
        assert partials(tmp_path) == []

    def test_a_server_without_ranges_sends_the_file_anew(self, hub: Hub) -> None:
        hub.ignores_ranges = True
        hub.cuts[BIG] = [100_000]
        assert (pull(REPOSITORY) / BIG).read_bytes() == shards()[BIG]

    def test_a_partial_file_with_other_contents_is_thrown_away(self, hub: Hub, tmp_path: Path) -> None:
        partial = (
            storage_of(tmp_path / "cache", REPOSITORY) / "blobs" / f"{etag_of(shards()[BIG])}.incomplete"
        )
        partial.parent.mkdir(parents=True)
        partial.write_bytes(b"x" * 1000)
        with pytest.raises(HubError, match=f"{BIG} was continued .* checksum is wrong"):
            pull(REPOSITORY)
        assert (pull(REPOSITORY) / BIG).read_bytes() == shards()[BIG]

    def test_a_partial_file_that_is_too_long_begins_anew(self, hub: Hub, tmp_path: Path) -> None:
        partial = (
            storage_of(tmp_path / "cache", REPOSITORY) / "blobs" / f"{etag_of(shards()[BIG])}.incomplete"
        )
        partial.parent.mkdir(parents=True)
        partial.write_bytes(b"x" * 300_001)
        assert (pull(REPOSITORY) / BIG).read_bytes() == shards()[BIG]

    def test_passing_faults_are_tried_again(self, hub: Hub) -> None:
        hub.faults[BIG] = [503, 429]
        assert (pull(REPOSITORY) / BIG).read_bytes() == shards()[BIG]
        assert hub.counts()[BIG] == 3

    def test_lasting_faults_are_not(self, hub: Hub) -> None:
        hub.faults[BIG] = [403]
        with pytest.raises(HubError, match="is gated"):
            pull(REPOSITORY)
        assert hub.counts()[BIG] == 1

    def test_giving_up_after_some_attempts(self, hub: Hub) -> None:
        hub.cuts[BIG] = [0] * 20
        with pytest.raises(HubError, match="broke off"):
            pull(REPOSITORY)
        assert hub.counts()[BIG] == snapshot_module.RETRIES + 1

    def test_an_interrupted_update_leaves_the_old_snapshot(self, hub: Hub) -> None:
        old = pull(REPOSITORY)
        hub.commit_of_main = hub.add(REPOSITORY, shards(size=400_000), "b" * 40)
        hub.cuts[BIG] = [0] * 20
        with pytest.raises(HubError):
            pull(REPOSITORY)
        assert pull(REPOSITORY, offline=True) == old


class TestRevision:
    def test_a_commit_is_pulled_and_needs_no_network_afterwards(self, hub: Hub) -> None:
        old = hub.add(REPOSITORY, shards() | {"config.json": b'{"old": 1}'}, "c" * 40)
        folder = pull(REPOSITORY, revision=old)
        assert (folder / "config.json").read_bytes() == b'{"old": 1}'
        hub.requests.clear()
        assert pull(REPOSITORY, revision=old) == folder
        assert hub.requests == []

    def test_main_moves(self, hub: Hub) -> None:
        first = pull(REPOSITORY)
        hub.commit_of_main = hub.add(REPOSITORY, shards() | {"config.json": b'{"new": 1}'}, "b" * 40)
        second = pull(REPOSITORY)
        assert (first.name, second.name) == ("a" * 40, "b" * 40)
        assert pull(REPOSITORY, offline=True) == second

    def test_unknown_revision(self, hub: Hub) -> None:
        with pytest.raises(HubError, match=r"has no revision 'v9' \(404\)"):
            pull(REPOSITORY, revision="v9")

    @pytest.mark.parametrize("revision", ["../../x", "/etc", "a..b"])
    def test_revisions_that_are_paths(self, hub: Hub, revision: str) -> None:
        with pytest.raises(HubError, match="not a branch, tag or commit"):
            pull(REPOSITORY, revision=revision)


class TestOffline:
    def test_a_complete_cache_is_used(self, hub: Hub) -> None:
        folder = pull(REPOSITORY)
        hub.requests.clear()
        assert pull("internvl2.5-1b", offline=True) == folder
        assert hub.requests == []

    def test_the_environment_decides(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        with pytest.raises(HubError, match=r"may not be used \(offline\), and nothing of it is in the cache"):
            pull(REPOSITORY)
        assert hub.requests == []

    def test_missing_files_are_named(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(snapshot_module, "RETRIES", 0)
        hub.cuts["tokenizer.json"] = [1]
        with pytest.raises(HubError, match=r"broke off at tokenizer\.json"):
            pull(REPOSITORY)
        with pytest.raises(HubError, match=r"the cache lacks .*tokenizer.json, tokenizer_config.json"):
            pull(REPOSITORY, offline=True)

    def test_a_removed_or_shortened_file_is_named(self, hub: Hub) -> None:
        folder = pull(REPOSITORY)
        (folder / "tokenizer.json").unlink()
        (folder / BIG).resolve().write_bytes(b"short")
        with pytest.raises(HubError, match=f"the cache lacks {BIG}, tokenizer.json"):
            pull(REPOSITORY, offline=True)
        assert contents(pull(REPOSITORY))[BIG] == shards()[BIG]

    def test_a_cache_filled_by_another_program(self, hub: Hub, tmp_path: Path) -> None:
        folder = pull(REPOSITORY)
        shutil.rmtree(storage_of(tmp_path / "cache", REPOSITORY) / "listings")
        assert pull(REPOSITORY, offline=True) == folder
        (folder / BIG).unlink()
        with pytest.raises(HubError, match=f"the cache lacks {BIG} "):
            pull(REPOSITORY, offline=True)
        (folder / "model.safetensors.index.json").unlink()
        (folder / "config.json").unlink()
        assert find_missing(tmp_path) == ("config.json",)
        for file in folder.glob("*.safetensors"):
            file.unlink()
        assert find_missing(tmp_path) == ("config.json", "model.safetensors")

    def test_an_unreachable_hub_falls_back_to_the_cache(
        self, hub: Hub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = pull(REPOSITORY)
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        assert pull(REPOSITORY) == folder

    def test_a_broken_hub_falls_back_to_the_cache(self, hub: Hub) -> None:
        folder = pull(REPOSITORY)
        hub.statuses[REPOSITORY] = (500, "")
        assert pull(REPOSITORY) == folder


def find_missing(tmp_path: Path) -> tuple[str, ...]:
    snapshot = find_snapshot(storage_of(tmp_path / "cache", REPOSITORY), "main")
    assert snapshot is not None
    return snapshot.missing()


class TestRefusals:
    @pytest.mark.parametrize(
        ("status", "code", "message"),
        [
            (404, "RepoNotFound", "does not exist"),
            (404, "", "does not exist"),
            (401, "RepoNotFound", "private or gated: set HF_TOKEN"),
            (401, "GatedRepo", "is gated: accept its terms there"),
            (403, "GatedRepo", "is gated: accept its terms there"),
            (403, "", "is gated: accept its terms there"),
            (429, "", "answered 429"),
        ],
    )
    def test_what_the_hub_says(self, hub: Hub, status: int, code: str, message: str) -> None:
        hub.statuses[REPOSITORY] = (status, code)
        with pytest.raises(HubError, match=f"{REPOSITORY}.*{message}"):
            pull(REPOSITORY)

    def test_connection_refused(self, hub: Hub) -> None:
        with pytest.raises(
            HubError, match=r"http://127.0.0.1:9 cannot be reached .*nothing of it is in the cache"
        ):
            pull(REPOSITORY, endpoint="http://127.0.0.1:9")

    def test_offline_when_the_library_was_imported(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(HubError, match="offline"):
            pull(REPOSITORY)

    def test_a_hub_that_names_no_commit(self, hub: Hub) -> None:
        hub.repositories["a/b"] = {"": shards(1)}
        hub.commit_of_main = ""
        with pytest.raises(HubError, match="named no commit"):
            pull("a/b")

    def test_the_disk_is_too_small(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 9, 1_000))
        hub.claimed_sizes[BIG] = 16_000_000_000
        with pytest.raises(HubError, match=r"needs 16\.00 GB more, but .* has 0\.00 GB free: make room"):
            pull(REPOSITORY)
        assert hub.counts()[BIG] == 0

    @pytest.mark.parametrize("name", ["listings", "refs", "blobs", "../.locks"])
    def test_the_cache_cannot_be_written(self, hub: Hub, tmp_path: Path, name: str) -> None:
        storage = storage_of(tmp_path / "cache", REPOSITORY)
        storage.mkdir(parents=True)
        (storage / name).touch()
        with pytest.raises(HubError, match=r"(cannot be written|broke off at) .*Error: "):
            pull(REPOSITORY)

    def test_a_wrong_size_is_an_error_and_leaves_nothing(self, hub: Hub, tmp_path: Path) -> None:
        hub.claimed_sizes[BIG] = 299_999
        with pytest.raises(HubError, match=rf"{BIG} should have 299,999 bytes but sent 300,000"):
            pull(REPOSITORY)
        assert partials(tmp_path) == []

    def test_hostile_names_are_not_files(self, hub: Hub, tmp_path: Path) -> None:
        hub.add("a/b", shards(1) | {"../../../evil.json": b"x", "/evil.json": b"x", ".hidden.json": b"x"})
        folder = pull("a/b", allow_patterns=["*"])
        assert not list(tmp_path.rglob("*evil*"))
        assert ".hidden.json" not in contents(folder)

    def test_a_hostile_commit_is_not_a_folder(self, hub: Hub) -> None:
        hub.commit_of_main = hub.add(REPOSITORY, shards(), "../../../evil")
        with pytest.raises(HubError, match="cannot be a file name"):
            pull(REPOSITORY)

    def test_not_a_checkpoint(self, hub: Hub) -> None:
        hub.add("a/b", {"config.json": b"{}", "README.md": b""})
        with pytest.raises(HubError, match=r"no checkpoint: .* found README\.md, config\.json"):
            pull("a/b")

    def test_no_pattern_matches(self, hub: Hub) -> None:
        with pytest.raises(HubError, match=r"matches \*\.onnx"):
            pull(REPOSITORY, allow_patterns=["*.onnx"])

    def test_names_that_are_nothing(self, hub: Hub) -> None:
        with pytest.raises(UnknownNameError, match=r"did you mean .*InternVL2_5-1B"):
            pull("InternVL2_5-1")
        with pytest.raises(HubError, match="InternVL2-Pro is not on the hub: offered as a service"):
            pull("InternVL2-Pro")


class TestResolve:
    def test_a_directory_is_taken_as_it_is(self, hub: Hub, tmp_path: Path) -> None:
        assert resolve(tmp_path) == tmp_path
        assert resolve(str(tmp_path)) == tmp_path
        assert hub.requests == []

    def test_a_row_is_pulled_once(self, hub: Hub) -> None:
        folder = resolve("InternVL2_5-1B")
        hub.requests.clear()
        assert resolve("internvl2_5-1b") == folder
        assert hub.requests == []

    def test_a_repository_outside_the_zoo_only_from_the_cache(self, hub: Hub) -> None:
        hub.add("somebody/model", shards(1))
        with pytest.raises(UnknownNameError, match="internvl pull somebody/model"):
            resolve("somebody/model")
        folder = pull("somebody/model")
        assert resolve("somebody/model") == folder

    def test_what_cannot_be_loaded_is_not_downloaded(self, hub: Hub) -> None:
        hub.add("OpenGVLab/InternVL2_5-8B-AWQ", shards(1))
        with pytest.raises(HubError, match=r"cannot be loaded: quantised .*internvl pull InternVL2_5-8B-AWQ"):
            resolve("InternVL2_5-8B-AWQ")
        assert hub.requests == []
        folder = pull("InternVL2_5-8B-AWQ")
        assert resolve("InternVL2_5-8B-AWQ") == folder

    def test_a_row_that_is_one_file_of_a_repository(self, hub: Hub) -> None:
        name = "internvl_c_13b_224px.pth"
        hub.add("OpenGVLab/InternVL", {name: b"1" * 50, "intern_vit_6b_224px.pth": b"2", "README.md": b"3"})
        found = resolve("InternVL-C-13B-224px")
        assert (found.name, found.read_bytes()) == (name, b"1" * 50)
        assert contents(found.parent).keys() == {name}
        hub.requests.clear()
        assert resolve("internvl-c-13b-224px") == found
        assert hub.requests == []
        assert pull("InternVL-C-13B-224px", offline=True) == found.parent

    def test_one_file_is_not_taken_for_another(self, hub: Hub) -> None:
        hub.add("OpenGVLab/InternVL", {"internvl_c_13b_224px.pth": b"1", "other.pth": b"2"})
        folder = pull("OpenGVLab/InternVL", allow_patterns=["other.pth"])
        assert resolve("InternVL-C-13B-224px") == folder / "internvl_c_13b_224px.pth"
        assert contents(folder).keys() == {"internvl_c_13b_224px.pth", "other.pth"}

    def test_a_partial_download_is_finished(self, hub: Hub) -> None:
        folder = pull(REPOSITORY)
        (folder / "tokenizer.json").unlink()
        assert resolve(REPOSITORY) == folder
        assert (folder / "tokenizer.json").is_file()

    def test_the_cache_is_where_the_environment_says(
        self, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert cache_directory() == tmp_path / "cache"
        monkeypatch.delenv("HF_HUB_CACHE")
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        assert cache_directory() == tmp_path / "home" / "hub"
        monkeypatch.delenv("HF_HOME")
        assert cache_directory() == Path(huggingface_hub.constants.HF_HUB_CACHE)
        assert pull(REPOSITORY, cache_dir=tmp_path / "other").is_relative_to(tmp_path / "other")

    @pytest.mark.parametrize("name", ["no/such/directory", "./nothing", "InternVL9"])
    def test_anything_else(self, hub: Hub, name: str) -> None:
        with pytest.raises(UnknownNameError):
            resolve(name)
        assert hub.requests == []


class TestChoice:
    def test_safetensors_win_and_bring_only_their_index(self) -> None:
        files = ["config.json", "model.safetensors", "pytorch_model.bin", "pytorch_model.bin.index.json"]
        assert choose_files(files) == ("config.json", "model.safetensors")

    def test_pickled_weights_bring_only_their_index(self) -> None:
        files = [
            "config.json",
            "pytorch_model-1.bin",
            "pytorch_model.bin.index.json",
            "mm_projector.bin",
            "optimizer.bin",
        ]
        assert choose_files(files) == (
            "config.json",
            "mm_projector.bin",
            "pytorch_model-1.bin",
            "pytorch_model.bin.index.json",
        )

    def test_tokenizer_files(self) -> None:
        tokenizer = [
            "tokenizer.model",
            "vocab.json",
            "merges.txt",
            "special_tokens_map.json",
            "chat_template.jinja",
        ]
        assert set(tokenizer) < set(choose_files(["config.json", "model.safetensors", "a.py", *tokenizer]))

    def test_code_is_never_chosen(self) -> None:
        assert choose_files(["a.py", "b.json"], ["*"]) == ("b.json",)
