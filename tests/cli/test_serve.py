"""`internvl serve`: flags under all their names, and what is refused before a model is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from internvl.cli.arguments import parse
from internvl.cli.serve import Options, _settings
from internvl.errors import InputError
from tests.cli.conftest import Run


def test_flags_have_vllms_names_and_lmdeploys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("INTERNVL_API_KEY", raising=False)
    ours = [
        "m", "--host", "h", "--port", "1", "--api-key", "SECRET", "--served-model-name", "n",
        "--max-model-len", "99", "--max-num-seqs", "3",
    ]  # fmt: skip
    theirs = [
        "m", "--server-name", "h", "--server-port", "1", "--api-keys", "SECRET", "--model-name", "n",
        "--session-len", "99", "--max-batch-size", "3",
    ]  # fmt: skip
    options = parse(Options, ours, "serve")
    assert parse(Options, theirs, "serve") == options
    settings = _settings(options)
    assert (settings.served_names, settings.api_keys) == (("n",), ("SECRET",))
    assert (settings.engine.max_model_len, settings.engine.max_running) == (99, 3)
    assert "SECRET" not in repr(settings)


def test_the_engine_is_as_the_flags_say() -> None:
    ours = [
        "--max-num-batched-tokens", "64", "--kv-cache-memory-bytes", "1000000",
        "--num-speculative-tokens", "4", "--kv-cache-dtype", "int8", "--no-enable-prefix-caching",
        "--vision-cache-path", "folder",
    ]  # fmt: skip
    theirs = [
        "--max-prefill-token-num", "64", "--kv-cache-bytes", "1000000", "--num-drafts", "4",
        "--kv-cache-dtype", "int8", "--no-enable-prefix-caching", "--vision-cache-path", "folder",
    ]  # fmt: skip
    engine = _settings(parse(Options, ours, "serve")).engine
    assert _settings(parse(Options, theirs, "serve")).engine == engine
    assert (engine.max_step_tokens, engine.cache_bytes, engine.num_drafts) == (64, 10**6, 4)
    assert (engine.kv_format, engine.shares_prefixes, engine.vision_directory) == ("int8", False, "folder")
    half = _settings(parse(Options, ["--cache-max-entry-count", "0.5"], "serve")).engine.cache_bytes
    tenth = _settings(parse(Options, ["--cache-max-entry-count", "0.1"], "serve")).engine.cache_bytes
    assert half > 2 * tenth > 2**20


def test_adapters_are_names_and_folders(tmp_path: Path) -> None:
    words = ["m", "--lora-modules", f"a={tmp_path}", "--lora-modules", f"b={tmp_path}"]
    settings = _settings(parse(Options, words, "serve"))
    assert settings.adapters == (("a", tmp_path), ("b", tmp_path))
    for name in ("m", "b"):
        words = ["m", "--lora-modules", f"{name}={tmp_path}", "--lora-modules", f"b={tmp_path}"]
        with pytest.raises(InputError, match="names of adapters"):
            _settings(parse(Options, words, "serve"))


def test_everything_is_closed_unless_opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("INTERNVL_API_KEY", "from-environment")
    closed = _settings(parse(Options, ["some/model"], "serve"))
    assert closed.served_names == ("model",)
    assert closed.api_keys == ("from-environment",)
    assert (closed.media.allowed_domains, closed.media.allowed_local_path) == ((), None)
    assert not closed.media.allow_private_hosts
    assert closed.allowed_origins == ()
    words = [
        "m", "--allowed-media-domains", "a.example", "--allowed-media-domains", "b.example",
        "--allowed-local-media-path", str(tmp_path), "--allow-private-media-hosts",
        "--allowed-origins", '["https://a.example"]', "--limit-mm-per-prompt", "2", "--max-media-mb", "1",
    ]  # fmt: skip
    opened = _settings(parse(Options, words, "serve"))
    assert opened.media.allowed_domains == ("a.example", "b.example")
    assert opened.media.allowed_local_path == tmp_path
    assert opened.media.allow_private_hosts
    assert opened.allowed_origins == ("https://a.example",)
    assert (opened.media.max_media, opened.media.max_bytes, opened.max_body_bytes) == (2, 2**20, 2**21)


@pytest.mark.parametrize(
    "words",
    [
        ["--port", "-1"], ["--max-num-seqs", "0"], ["--max-model-len", "1"], ["--media-timeout", "0"],
        ["--media-workers", "0"], ["--allowed-local-media-path", "no/such/folder"], ["--no-such-flag"],
        ["--max-num-batched-tokens", "4"], ["--cache-max-entry-count", "2"], ["--kv-cache-bytes", "0"],
        ["--lora-modules", "a=no/such/folder"], ["--lora-modules", "a"],
    ],
)  # fmt: skip
def test_wrong_use(run: Run, model: str, words: list[str]) -> None:
    finished = run("serve", model, *words)
    assert (finished.status, finished.out) == (2, "")
    assert finished.err


def test_two_models_are_for_two_things(run: Run, model: str, tower: str) -> None:
    assert "--embedding-model" in run("serve", model, "--embedding-model", model).err
    assert run("serve", tower, "--embedding-model", tower).status == 2


def test_keys_come_from_flags_a_file_and_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("INTERNVL_API_KEY", "c")
    file = tmp_path / "keys"
    file.write_text("d\n\n  a \n", encoding="utf-8")
    words = ["m", "--api-key", "a", "--api-key", "b", "--api-key-file", str(file), "--max-reqs-per-key", "2"]
    settings = _settings(parse(Options, words, "serve"))
    assert settings.api_keys == ("a", "b", "c", "d")
    assert settings.max_per_key == 2


@pytest.mark.parametrize("words", [["--api-key", ""], ["--api-key", "a", "--api-key", " "], []])
def test_an_empty_key_does_not_open_the_server(
    run: Run, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    if words:
        monkeypatch.delenv("INTERNVL_API_KEY", raising=False)
    else:
        monkeypatch.setenv("INTERNVL_API_KEY", "")
    finished = run("serve", "m", *words)
    assert finished.status == 2
    assert "is empty, so that anyone might ask" in finished.err


def test_key_files_of_other_encodings(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("INTERNVL_API_KEY", raising=False)
    file = tmp_path / "keys"
    file.write_bytes(b"\xef\xbb\xbfa\n")
    assert _settings(parse(Options, ["m", "--api-key-file", str(file)], "serve")).api_keys == ("a",)
    file.write_bytes(b"\xff\xfea\0")
    assert "cannot be read" in run("serve", "m", "--api-key-file", str(file)).err


def test_values_that_are_no_lists_and_folders_without_names(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for word in ("[", "[1]"):
        finished = run("serve", "m", "--allowed-origins", word)
        assert (finished.status, "--allowed-origins" in finished.err) == (2, True)
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    assert _settings(parse(Options, ["."], "serve")).served_names == ("mine",)


def test_ports_end(run: Run) -> None:
    assert "--port must be at most 65535" in run("serve", "m", "--port", "65536").err


def test_the_largest_request_finds_room() -> None:
    settings = _settings(parse(Options, ["m", "--max-media-mb", "300"], "serve"))
    assert settings.max_bytes_inside >= settings.max_body_bytes


def test_a_file_without_keys_does_not_open_the_server(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("INTERNVL_API_KEY", raising=False)
    (tmp_path / "keys").write_text("\n", encoding="utf-8")
    assert "has no keys" in run("serve", "m", "--api-key-file", str(tmp_path / "keys")).err
    assert "needs --api-key" in run("serve", "m", "--max-reqs-per-key", "1").err
    for words in (["--api-key-file", str(tmp_path / "none")], ["--request-timeout", "0"]):
        finished = run("serve", "m", *words)
        assert finished.status == 2
        assert words[0] in finished.err


def test_what_keeps_the_engine_from_starting_is_said(run: Run, model: str, tmp_path: Path) -> None:
    finished = run("serve", model, "--port", "0", "--lora-modules", f"a={tmp_path}")
    assert (finished.status, finished.out) == (1, "")
    assert "internvl serve: " in finished.err
    assert str(tmp_path) in finished.err
