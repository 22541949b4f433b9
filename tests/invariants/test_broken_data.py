"""Broken data of every kind ends in the report: no traceback, no zeroed loss, no run that waits for ever.

Every case is one broken row or file in a folder of good ones. The check lists it, and a run of several epochs
over it trains on the good ones alone.
"""

from __future__ import annotations

import io
import json
import os
import re
import struct
import tarfile
import zlib
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from internvl.checkpoints.configs import describe
from internvl.config import ChatConfig
from internvl.data.bad_samples import BadSamplesLog
from internvl.data.batch import pack
from internvl.data.chat_examples import Examples
from internvl.data.check import check
from internvl.data.feed import Feed
from internvl.data.meta import DataSet, open_data
from internvl.data.mixture import Mixture
from internvl.data.spec import BadSamples, Batching, DataSpec
from internvl.processing.processor import Processor
from internvl.processing.tokenizer import load_tokenizer
from tests.conftest import GoldenFixtures

SPEC = DataSpec(
    max_length=900,
    batching=Batching(packs=2, max_tokens=1000, max_tiles=34),
    bad_samples=BadSamples(limit=1.0),
)
NUM_GOOD = 6
PACK = partial(pack, tile_size=84)


@pytest.fixture(scope="session")
def examples(golden_dir: GoldenFixtures) -> Examples:
    folder = golden_dir / "internvl2_5_qwen2"
    config = describe(folder).config
    assert isinstance(config, ChatConfig)
    return Examples(Processor(config, load_tokenizer(folder)), max_length=SPEC.max_length)


def turns(question: Any, answer: Any = "Yes.") -> list[dict[str, Any]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def row(**fields: Any) -> bytes:
    return json.dumps({"image": "good.png", "conversations": turns("<image>\nWhat?"), **fields}).encode()


def picture(name: str) -> bytes:
    return row(image=name)


def film(name: str, **fields: Any) -> bytes:
    return row(image=None, video=name, conversations=turns("<video>\nWhat?"), **fields)


GOOD = row()

LINES: dict[str, tuple[bytes, str]] = {
    # what is no row
    "cut line": (GOOD[:-9], "not JSON"),
    "empty object": (b"{}", "in the keys"),
    "array": (b"[1, 2]", "a row is an object"),
    "number": (b"17", "a row is an object"),
    "null": (b"null", "a row is an object"),
    "single quotes": (b"{'image': 'good.png'}", "not JSON"),
    "NUL bytes": (b"\0\0\0\0", "not JSON"),
    "not UTF-8": (row().replace(b"What", "Wäs".encode("latin-1")), "not UTF-8"),
    "UTF-16": (GOOD.decode().encode("utf-16-le").replace(b"\n", b""), "not JSON|not UTF-8"),
    "deeply nested": (b'{"conversations": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "not JSON"),
    "huge number": (b'{"width": ' + b"9" * 5000 + b"}", "not JSON"),
    "doubled key": (b'{"image": "good.png", "image": "good.png"}', "twice"),
    # what is of a wrong type
    "turns are text": (row(conversations="What?"), "conversations must be a list"),
    "turns are empty": (row(conversations=[]), "conversations must be a list that is not empty"),
    "turn is text": (row(conversations=["What?"]), "turn 0 needs"),
    "turn without value": (row(conversations=[{"from": "human"}]), "turn 0 needs"),
    "value is a list": (row(conversations=turns(["<image>"])), "turn 0 needs"),
    "value is null": (row(conversations=turns("<image>", None)), "turn 1 needs"),
    "value is true": (row(conversations=turns("<image>", True)), "turn 1 needs"),
    "unknown speaker": (row(conversations=[{"from": "cat", "value": "<image>"}]), "unknown speaker"),
    "picture is a number": (row(image=5), "a picture or video is"),
    "picture is a list of lists": (row(image=[["good.png"]]), "a picture or video is"),
    "picture is an object": (row(image={"url": "good.png"}), "a picture or video is"),
    "messages are text": (b'{"messages": "hello"}', "messages"),
    "unknown role": (b'{"messages": [{"role": "cat", "content": "x"}]}', "cat"),
    "part of unknown type": (
        b'{"messages": [{"role": "user", "content": [{"type": "smell"}]}]}',
        "smell",
    ),
    # turns that do not fit
    "two marks, one picture": (row(conversations=turns("<image><image>")), "2 <image> marks"),
    "mark without picture": (row(image=""), "1 <image> marks"),
    "two pictures, one mark": (row(image=["good.png", "good.png"]), "1 <image> marks.* 2 pictures"),
    "empty answer": (row(conversations=turns("<image>", "")), "empty"),
    "empty question": (row(image="", conversations=turns("")), "empty"),
    "no answer": (row(conversations=turns("<image>")[:1]), "no token is trained"),
    "preference without rejected": (
        b'{"image": "good.png", "question": "What?", "chosen": "Yes."}',
        "rejected",
    ),
    "preference of equals": (
        b'{"image": "good.png", "question": "What?", "chosen": "Yes.", "rejected": "Yes."}',
        "same",
    ),
    "no captions": (b'{"image": "good.png", "captions": []}', "captions"),
    # too much
    "too long": (row(conversations=turns("<image>", "no " * 900)), "the limit is 900"),
    "too many tiles": (row(image=["good.png"] * 35, conversations=turns("<image>" * 35)), "35 tiles"),
    "too many pictures": (
        row(image=["good.png"] * 600, conversations=turns("<image>" * 600)),
        "tokens .* pictures",
    ),
    # pictures
    "missing": (picture("missing.png"), "no such file"),
    "folder": (picture("folder"), "is a directory"),
    "empty file": (picture("empty.png"), "empty.png"),
    "text file": (picture("text.png"), "text.png"),
    "cut JPEG": (picture("cut.jpg"), "cut.jpg"),
    "cut PNG": (picture("cut.png"), "cut.png"),
    "wrong checksum": (picture("flipped.png"), "flipped.png"),
    "bomb": (picture("bomb.png"), "pixels"),
    "no pixels": (picture("flat.png"), "flat.png"),
    "SVG": (picture("drawing.svg"), "SVG"),
    "video for a picture": (picture("clip.mp4"), "a video"),
    "pipe": (picture("pipe"), "not a regular file"),
    "device": (picture("/dev/zero"), "not a regular file"),
    "NUL in the name": (picture("a\0b.png"), "null byte"),
    "name too long": (picture("x" * 5000), "no such file"),
    "loop of links": (picture("loop.png"), "no such file"),
    "web address": (picture("http://127.0.0.1:9/a.png"), "web addresses are closed"),
    "bucket": (picture("s3://bucket/a.png"), "not on this machine"),
    "bad data URL": (picture("data:image/png;base64,@@@"), "base64"),
    # videos
    "missing video": (film("missing.mp4"), "no such file"),
    "unreadable video": (film("clip.mp4"), "no video that can be read"),
    "cut video": (film("cut.mp4"), "no video that can be read|cut off"),
    "text for a video": (film("text.png"), "no video that can be read"),
    "folder without frames": (film("folder"), "holds no frames"),
    "clip of a folder": (film("frames", clip=[0, 1]), "without a frame rate"),
    "clip backwards": (film("good.mp4", clip=[0.9, 0.1]), "bound must"),
    "clip behind the end": (film("good.mp4", clip=[50, 60]), "bound must"),
    "clip without end": (film("good.mp4", clip=[float("nan"), float("inf")]), "bound must"),
    "clip of words": (film("good.mp4", clip="all"), "bound must"),
    "two videos": (row(image=None, video=["a.mp4", "b.mp4"]), "2 videos"),
}


def write_files(folder: Path) -> None:
    """Good pictures, and one broken file of every kind."""
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    good = Image.fromarray(noise)
    good.save(folder / "good.png")
    good.resize((240, 60)).save(folder / "wide.png")
    good.save(folder / "whole.jpg")
    (folder / "folder").mkdir()
    (folder / "frames").mkdir()
    good.save(folder / "frames" / "0.png")
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("not a picture")
    whole = (folder / "whole.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    content = (folder / "good.png").read_bytes()
    (folder / "cut.png").write_bytes(content[: len(content) // 2])
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 0xFF
    (folder / "flipped.png").write_bytes(flipped)
    (folder / "bomb.png").write_bytes(png_header(100_000, 100_000))
    (folder / "flat.png").write_bytes(png_header(0, 10))
    (folder / "drawing.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (folder / "clip.mp4").write_bytes(b"\0\0\0\x18ftypisom\0\0\0\0" + bytes(64))
    write_video(folder / "good.mp4", good)
    content = (folder / "good.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(content[: len(content) // 2])
    os.mkfifo(folder / "pipe")
    (folder / "loop.png").symlink_to("loop.png")


def write_video(path: Path, picture: Image.Image) -> None:
    """One second of ten frames."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for _ in range(10):
            frame = av.VideoFrame.from_image(picture.resize((64, 64)))  # type: ignore[no-untyped-call]
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    start, pixels = b"\x89PNG\r\n\x1a\n", chunk(b"IDAT", zlib.compress(bytes(100)))
    return start + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    write_files(folder)
    return folder


@pytest.fixture
def open_with(files: Path, tmp_path: Path) -> Callable[[bytes], tuple[DataSet, ...]]:
    """A data set of good rows with one other in their midst."""

    def write(line: bytes) -> tuple[DataSet, ...]:
        half = [GOOD] * (NUM_GOOD // 2)
        (tmp_path / "rows.jsonl").write_bytes(b"\n".join([*half, line, *half]) + b"\n")
        meta = {"rows": {"root": str(files), "annotation": "rows.jsonl", "repeat_time": 1}}
        (tmp_path / "meta.json").write_text(json.dumps(meta))
        return open_data(tmp_path / "meta.json")

    return write


@pytest.mark.parametrize("case", LINES)
def test_it_is_in_the_report(
    case: str, examples: Examples, open_with: Callable[[bytes], tuple[DataSet, ...]], tmp_path: Path
) -> None:
    line, reason = LINES[case]
    datasets = open_with(line)
    report = check(datasets, examples, SPEC)
    (bad,) = report.bad
    assert bad.key == f"rows:{NUM_GOOD // 2}"
    assert bad.path.endswith(f"rows.jsonl, line {NUM_GOOD // 2 + 1}")
    assert re.search(reason, bad.reason), bad.reason
    assert len(bad.reason) <= 1003
    assert report.sets[0].tokens.total > 0
    _run_over(datasets, examples, tmp_path, bad.key)


def _run_over(datasets: tuple[DataSet, ...], examples: Examples, folder: Path, key: str) -> None:
    """Three epochs: the bad one is written down each time, every batch has tokens to learn."""
    log = folder / "bad_samples.jsonl"
    bad = BadSamplesLog(log, SPEC.bad_samples)
    mixture, limits = Mixture(datasets), SPEC.batching
    with closing(Feed(mixture, examples, SPEC, seed=0, pack=PACK, bad=bad, accumulate=2)) as feed:
        while feed.position < 3 * len(mixture):
            for batch in feed.take().batches:  # one pack each
                assert len(batch.targets_A) >= len(batch.keys) > 0
                assert key not in batch.keys
                assert len(batch.ids_T) <= limits.max_tokens
                assert len(batch.tiles_N3HW) <= limits.max_tiles
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    assert len(rows) >= 3
    assert {row["key"] for row in rows} == {key}


def test_the_good_rows_are_good(
    examples: Examples, open_with: Callable[[bytes], tuple[DataSet, ...]]
) -> None:
    odd = row(conversations=turns("<image>", "\ud800"))
    words = b'{"text": "Only words."}'
    for line in (GOOD, row(image="wide.png"), row(image="whole.jpg"), film("good.mp4"), words, odd):
        assert check(open_with(line), examples, SPEC).is_good


def write_table(folder: Path, files: Path, broken: bytes) -> Path:
    good = b"good.png,What?,Yes."
    (folder / "rows.csv").write_bytes(b"\n".join([b"image,question,answer", good, broken, good, b""]))
    for name in ("good.png", "cut.png"):
        (folder / name).write_bytes((files / name).read_bytes())
    return folder / "rows.csv"


def write_tar(folder: Path, files: Path, broken: dict[str, bytes]) -> Path:
    good = {"png": (files / "good.png").read_bytes(), "txt": b"A photo."}
    with tarfile.open(folder / "rows.tar", "w") as tar:
        for number, members in enumerate((good, {**good, **broken}, good)):
            for kind, content in members.items():
                info = tarfile.TarInfo(f"{number}.{kind}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return folder / "rows.tar"


def write_parquet(folder: Path, files: Path, broken: bytes | None) -> Path:
    pyarrow = pytest.importorskip("pyarrow", reason="extra 'train'")
    parquet = pytest.importorskip("pyarrow.parquet")
    good = (files / "good.png").read_bytes()
    pictures = [{"bytes": content, "path": None} for content in (good, broken, good)]
    table = pyarrow.table({"image": pictures, "caption": ["A photo."] * 3})
    parquet.write_table(table, folder / "rows.parquet")
    return folder / "rows.parquet"


def write_folder(folder: Path, files: Path, caption: bytes | None) -> Path:
    for number in range(3):
        (folder / f"{number}.png").write_bytes((files / "good.png").read_bytes())
        text = b"A photo." if number != 1 else caption
        if text is not None:
            (folder / f"{number}.txt").write_bytes(text)
    return folder


CUT_PNG = png_header(50, 50)[:60]
FORMATS: dict[str, tuple[Callable[[Path, Path, Any], Path], Any, str]] = {
    "table: a cell too many": (write_table, b"good.png,What?,Yes.,No.", "4 cells for the 3 columns"),
    "table: a cell missing": (write_table, b"good.png", "1 cells"),
    "table: no picture of that name": (write_table, b"gone.png,What?,Yes.", "no such file"),
    "table: cut picture": (write_table, b"cut.png,What?,Yes.", "cut off or damaged"),
    "table: empty answer": (write_table, b"good.png,What?,", "a question without an answer"),
    "table: not UTF-8": (write_table, b"good.png,W\xe4s?,Yes.", "utf-8"),
    "tar: cut picture": (write_tar, {"png": CUT_PNG}, "damaged"),
    "tar: no picture": (write_tar, {"png": b"a word"}, "no picture"),
    "tar: broken JSON": (write_tar, {"json": b"{"}, "not JSON"),
    "tar: not UTF-8": (write_tar, {"txt": b"\xff\xfe"}, "not UTF-8"),
    "tar: empty caption": (write_tar, {"txt": b" "}, "nothing to learn"),
    "parquet: cut picture": (write_parquet, CUT_PNG, "damaged"),
    "parquet: no picture": (write_parquet, b"a word", "no picture"),
    "folder: no caption": (write_folder, None, "no caption beside it"),
    "folder: empty caption": (write_folder, b"", "is empty"),
    "folder: not UTF-8": (write_folder, b"\xff", "not UTF-8"),
}


@pytest.mark.parametrize("case", FORMATS)
def test_in_every_format(case: str, examples: Examples, files: Path, tmp_path: Path) -> None:
    write, broken, reason = FORMATS[case]
    (tmp_path / "data").mkdir()
    datasets = open_data(write(tmp_path / "data", files, broken))
    (bad,) = check(datasets, examples, SPEC).bad
    assert bad.position == 1
    assert re.search(reason, bad.reason), bad.reason
    _run_over(datasets, examples, tmp_path, bad.key)
