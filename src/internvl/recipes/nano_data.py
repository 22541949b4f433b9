"""The records nano was trained on: captions, questions about shapes, words in photos, rendered text.

    python -m internvl.recipes.nano_data DATA OUT

DATA holds `flickr8k/` and `iiit5k/` with their train.jsonl, val.jsonl and pictures; questions come from the
package `easy-vqa` (PyPI, MIT), fetched with pip. OUT receives pictures that had to be made, a JSONL file for
each set, and the meta files captions.json, all.json, agreed.json, more.json (photos above all) and val.json;
pairs.json is for nano-c. The same call writes the same files. Of test splits only easy-VQA's is read: it is
in val.json, to be measured on, and nothing learns from it.
"""

from __future__ import annotations

import json
import random
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from internvl.checkpoints.wheels import Wheel, fetch_wheel
from internvl.evaluation.scores import cider_d

CAPTION = "Provide a one-sentence caption for the provided image."
OTHERS = (
    "Describe this photo.",
    "Describe this image in one sentence.",
    "What is in this picture?",
    "What do you see in this image?",
    "Please describe the image shortly.",
)
CHINESE = ("请用一句话描述这张图片。", "这张图片里有什么？")
SHORT = "\nAnswer the question using a single word or phrase."
READ = ("What is written in the image?", "Read the text in this picture.", "What does the text say?")

QUESTIONS_WHEEL = Wheel(
    package="easy-vqa",
    version="1.0",
    file="easy_vqa-1.0-py3-none-any.whl",
    sha256="fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f",
    member="easy_vqa/data/train/questions.json",
    member_bytes=1_888_771,
    member_sha256="bb67697636aed0e65631d4266824aebeae5c833b0f37ed781e20752e85617ec5",
)
FACES = ("DejaVu", "STIXGeneral")
NUM_RENDERED = 4000
SEED = 0


def write(data: Path, out: Path) -> None:
    """Writes the sets of `data` and of the packages as records under `out`."""
    out.mkdir(parents=True, exist_ok=True)
    flickr = data / "flickr8k"
    rows = {split: _read(flickr / f"{split}.jsonl") for split in ("train", "val")}
    _write(out / "captions_en.jsonl", _captions(rows["train"], "en", (CAPTION, *OTHERS)))
    _write(out / "captions_agreed.jsonl", _captions(agreed(rows["train"]), "en", (CAPTION, *OTHERS)))
    _write(out / "captions_zh.jsonl", _captions(rows["train"], "zh", CHINESE, keep=2))
    _write(out / "captions_val.jsonl", _captions(rows["val"], "en", (CAPTION,)))
    _write(out / "pairs.jsonl", pairs(rows["train"]))
    words = _read(data / "iiit5k" / "train.jsonl")
    _write(out / "words.jsonl", _words(words))
    wheel = fetch_wheel(QUESTIONS_WHEEL, out / "wheels")
    for split in ("train", "test"):
        _write(out / f"shapes_{split}.jsonl", _shapes(wheel, split, out / "shapes" / split))
    vocabulary = sorted({word for row in rows["train"] for word in row["en"][0].split() if word.isalpha()})
    _write(out / "rendered.jsonl", _rendered(vocabulary, out / "rendered"))
    captions = {"captions_en": (flickr, 2.0)}
    everything = captions | {
        "captions_zh": (flickr, 0.25),
        "shapes_train": (out / "shapes" / "train", 1.0),
        "words": (data / "iiit5k", 1.0),
        "rendered": (out / "rendered", 0.5),
    }
    agreeing = {name: one for name, one in everything.items() if name != "captions_en"}
    rarely = {name: (root, repeat / 4) for name, (root, repeat) in agreeing.items()}
    for name, sets in {
        "captions": captions,
        "all": everything,
        "agreed": {"captions_agreed": (flickr, 4.0)} | agreeing,
        "more": {"captions_agreed": (flickr, 4.0)} | rarely,
        "pairs": {"pairs": (flickr, 1.0)},
        "val": {"captions_val": (flickr, 1.0), "shapes_test": (out / "shapes" / "test", 1.0)},
    }.items():
        meta = {
            key: {"root": str(root.resolve()), "annotation": f"{key}.jsonl", "repeat_time": repeat}
            for key, (root, repeat) in sets.items()
        }
        (out / f"{name}.json").write_text(json.dumps(meta, indent=2), encoding="utf-8")


def _captions(
    rows: Iterable[Mapping[str, Any]], language: str, questions: Sequence[str], keep: int | None = None
) -> Iterable[dict[str, Any]]:
    """A question for each picture: the first half of the time, else one of the others."""
    source = random.Random(SEED)
    for row in rows:
        others = len(questions) - 1
        question = questions[0 if not others or source.random() < 0.5 else 1 + source.randrange(others)]
        answers = [tidy(text) if language == "en" else text.strip() for text in row[language][:keep]]
        yield {"image": row["image"], "question": question, "answers": answers}


def agreed(rows: Sequence[Mapping[str, Any]], keep: int = 2) -> list[dict[str, Any]]:
    """The same pictures with those of their English captions that the others agree with most (CIDEr-D)."""
    numbers = range(min(len(row["en"]) for row in rows))
    scores = [
        cider_d(
            [row["en"][number] for row in rows],
            [[*row["en"][:number], *row["en"][number + 1 :]] for row in rows],
        )[1]
        for number in numbers
    ]
    found = []
    for row, *values in zip(rows, *scores, strict=True):
        order = sorted(numbers, key=values.__getitem__, reverse=True)
        found.append({**row, "en": [row["en"][number] for number in order[:keep]]})
    return found


def pairs(rows: Iterable[Mapping[str, Any]]) -> Iterable[dict[str, Any]]:
    """All English captions and one Chinese one, another for each row in turn: a Chinese text has three times
    the tokens, and every caption is drawn as often as the next."""
    for index, row in enumerate(rows):
        chinese = row["zh"][index % len(row["zh"])]
        yield {"image": row["image"], "en": row["en"], "zh": [chinese]}


def tidy(caption: str) -> str:
    """A tokenised caption as a written sentence: "a dog runs ." becomes "A dog runs."."""
    words = " ".join(caption.split())
    for mark in (".", ",", "!", "?", ";", ":", "'s", "n't"):
        words = words.replace(f" {mark}", mark)
    words = words.rstrip(".!?,;: ")
    return f"{words[:1].upper()}{words[1:]}." if words else caption.strip()


def _words(rows: Iterable[Mapping[str, Any]]) -> Iterable[dict[str, Any]]:
    for index, row in enumerate(rows):
        yield {"image": row["image"], "question": READ[index % len(READ)], "answers": [row["text"]]}


def _shapes(wheel: Path, split: str, folder: Path) -> Iterable[dict[str, Any]]:
    """Pictures of the package, unpacked, and all questions about each; half of the pictures ask for one
    word."""
    folder.mkdir(parents=True, exist_ok=True)
    asked: dict[int, list[tuple[str, str]]] = defaultdict(list)
    with zipfile.ZipFile(wheel) as archive:
        root = f"easy_vqa/data/{split}"
        for question, answer, picture in json.loads(archive.read(f"{root}/questions.json")):
            asked[picture].append((question, answer))
        for picture in asked:
            (folder / f"{picture}.png").write_bytes(archive.read(f"{root}/images/{picture}.png"))
    for picture, pairs in sorted(asked.items()):
        ending = SHORT if picture % 2 else ""
        yield {"image": f"{picture}.png", "pairs": [[f"{q[:1].upper()}{q[1:]}{ending}", a] for q, a in pairs]}


def _rendered(vocabulary: Sequence[str], folder: Path) -> Iterable[dict[str, Any]]:
    """One or two words, or a number, in many fonts, sizes and colours."""
    folder.mkdir(parents=True, exist_ok=True)
    source, fonts = random.Random(SEED), _fonts()
    for index in range(NUM_RENDERED):
        text = _some_text(source, vocabulary)
        font = ImageFont.truetype(source.choice(fonts), source.randrange(28, 64))
        left, top, right, bottom = font.getbbox(text)
        margin = source.randrange(4, 24)
        size = (round(right - left) + 2 * margin, round(bottom - top) + 2 * margin)
        back = tuple(source.randrange(256) for _ in range(3))
        ink = tuple((value + source.randrange(100, 156)) % 256 for value in back)
        picture = Image.new("RGB", size, back)
        ImageDraw.Draw(picture).text((margin - left, margin - top), text, fill=ink, font=font)
        picture.save(folder / f"{index}.png")
        yield {"image": f"{index}.png", "question": READ[index % len(READ)], "answers": [text]}


def _some_text(source: random.Random, vocabulary: Sequence[str]) -> str:
    kind = source.random()
    if kind < 0.15:
        return str(source.randrange(10 ** source.randrange(1, 6)))
    text = " ".join(source.choice(vocabulary) for _ in range(1 if kind < 0.75 else 2))
    return source.choice((text, text.upper(), text.capitalize()))


def _fonts() -> list[str]:
    """The text faces that come with matplotlib, so that every machine has the same."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    names = sorted(path.name for path in folder.glob("*.ttf"))
    return [str(folder / name) for name in names if name.startswith(FACES) and "Display" not in name]


def _read(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    partial.replace(path)


if __name__ == "__main__":
    import tyro

    tyro.cli(write, config=(tyro.conf.Positional,))
