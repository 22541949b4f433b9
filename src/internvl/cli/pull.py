"""`internvl pull`: a model of the zoo onto this disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, UseAppendAction, arg

from internvl.checkpoints import hub
from internvl.cli import output
from internvl.cli.arguments import File, Flag, Word, parse


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Download a model, or what is missing of it. A broken download continues where it stopped.

    The models of the zoo are listed by `internvl info --models`. Files go to the cache that all Hugging
    Face libraries share (HF_HUB_CACHE, HF_HOME); HF_TOKEN opens gated models, HF_ENDPOINT names another hub.
    """

    name: Annotated[Positional[str], arg(metavar="NAME")]
    """A name of the zoo, or any repository as "owner/name"."""
    revision: Word = None
    """Branch, tag or commit; the newest unless the zoo says otherwise."""
    cache_dir: File = None
    """Another cache."""
    offline: Flag = False
    """Only say whether the model is complete on this disk; never ask the network."""
    include: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="PATTERN", help_behavior_hint="")] = ()
    """Only files that match, such as "*.json"; may be repeated."""
    json: Flag = False
    """Print one JSON document: name, path, files, bytes."""


def run(words: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    options = parse(Options, words, "pull")
    with output.progress("", is_bytes=True) as advance:
        folder = hub.pull(
            options.name,
            revision=options.revision,
            cache_dir=options.cache_dir,
            offline=options.offline or None,
            allow_patterns=options.include or None,
            progress=advance,
        )
    files = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file()
    }
    total = sum(files.values())
    if options.json:
        output.write_json({"name": options.name, "path": str(folder), "files": files, "bytes": total})
    else:
        output.note(f"{options.name}: {len(files)} files, {output.size(total)}")
        output.write(f"{folder}\n")
    return 0
