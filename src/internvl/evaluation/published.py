"""Published numbers of InternVL-C and -G (14B, 224 px), in per cent, to be printed beside one's own.

From "InternVL: Scaling up Vision Foundation Models and Aligning for Generic Visual-Linguistic Tasks"
(arXiv 2312.14238) and the result files of its repository (github.com/OpenGVLab/InternVL). Zero-shot numbers
are mode C's. Templates in other languages than English, and English names of ImageNet's classes, were those
of that repository, which are not shipped here.
"""

from __future__ import annotations

from collections.abc import Mapping

Metrics = Mapping[str, float]


def _both(image_to_text: tuple[float, ...], text_to_image: tuple[float, ...]) -> Metrics:
    ways = {"image_to_text": image_to_text, "text_to_image": text_to_image}
    return {
        f"{way}@{k}": value
        for way, values in ways.items()
        for k, value in zip((1, 5, 10), values, strict=True)
    }


ZERO_SHOT: Mapping[str, Metrics] = {
    "imagenet": {"acc1": 83.178, "acc5": 97.322, "mean_per_class": 83.204},
    "imagenet-a": {"acc1": 83.773, "acc5": 95.587, "mean_per_class": 81.839},
    "imagenet-r": {"acc1": 95.497, "acc5": 99.183, "mean_per_class": 94.602},
    "imagenet-v2": {"acc1": 77.26, "acc5": 94.68, "mean_per_class": 77.38},
    "imagenet-sketch": {"acc1": 73.859, "acc5": 91.998, "mean_per_class": 73.864},
    "objectnet": {"acc1": 80.591, "acc5": 93.879, "mean_per_class": 79.704},
    "imagenet-zh": {"acc1": 64.46, "acc5": 87.842, "mean_per_class": 64.442},
    "imagenet-ja": {"acc1": 61.488, "acc5": 81.146, "mean_per_class": 61.406},
    "imagenet-ar": {"acc1": 44.86, "acc5": 66.418, "mean_per_class": 44.764},
    "imagenet-it": {"acc1": 65.686, "acc5": 85.254, "mean_per_class": 65.578},
    "cifar10": {"acc1": 99.35, "acc5": 99.96, "mean_per_class": 99.35},
    "cifar100": {"acc1": 93.15, "acc5": 99.25, "mean_per_class": 93.14},
    "mnist": {"acc1": 80.6, "acc5": 97.43, "mean_per_class": 80.287},
    "caltech101": {"acc1": 89.490, "acc5": 98.480, "mean_per_class": 95.487},
    "sun397": {"acc1": 76.002, "acc5": 96.234, "mean_per_class": 76.420},
    "fgvc-aircraft": {"acc1": 52.715, "acc5": 94.269, "mean_per_class": 52.552},
    "country211": {"acc1": 34.081, "acc5": 60.488, "mean_per_class": 34.066},
    "cars": {"acc1": 94.167, "acc5": 99.950, "mean_per_class": 94.167},
    "birdsnap": {"acc1": 72.033, "acc5": 96.369, "mean_per_class": 70.276},
    "dtd": {"acc1": 70.745, "acc5": 93.670, "mean_per_class": 70.798},
    "eurosat": {"acc1": 79.374, "acc5": 99.841, "mean_per_class": 80.138},
    "fer2013": {"acc1": 56.199, "acc5": 97.325, "mean_per_class": 53.054},
    "flowers102": {"acc1": 86.063, "acc5": 95.365, "mean_per_class": 85.632},
    "food101": {"acc1": 95.263, "acc5": 99.549, "mean_per_class": 95.275},
    "gtsrb": {"acc1": 65.487, "acc5": 90.895, "mean_per_class": 57.752},
    "pets": {"acc1": 96.048, "acc5": 99.918, "mean_per_class": 96.025},
    "rendered-sst2": {"acc1": 67.930, "mean_per_class": 67.929},
    "resisc45": {"acc1": 74.226, "acc5": 96.635, "mean_per_class": 74.811},
    "stl10": {"acc1": 99.45, "acc5": 100.0, "mean_per_class": 99.45},
    "voc2007": {"acc1": 79.975, "acc5": 97.950, "mean_per_class": 90.488},
    "kinetics400": {"mean_1_5": 79.4},
    "kinetics600": {"mean_1_5": 78.8},
    "kinetics700": {"mean_1_5": 71.5},
    "kinetics400-1frame": {"mean_1_5": 71.0},
    "kinetics600-1frame": {"mean_1_5": 71.3},
    "kinetics700-1frame": {"mean_1_5": 65.7},
}
"""By set; Kinetics with 8 frames unless the name says 1."""

_XTD: Mapping[str, tuple[float, float]] = {
    "en": (97.3, 98.6),
    "es": (95.7, 97.7),
    "fr": (95.1, 96.5),
    "zh": (95.6, 96.7),
    "it": (96.0, 96.9),
    "ko": (92.2, 95.1),
    "ru": (93.3, 94.8),
    "ja": (95.5, 96.1),
}
"""Image to text at 10, in modes C and G."""

RETRIEVAL: Mapping[str, Mapping[str, Metrics]] = {
    "flickr30k": {
        "C": _both((94.7, 99.6, 99.9), (81.7, 96.0, 98.2)),
        "G": _both((95.7, 99.7, 99.9), (85.0, 97.0, 98.6)),
    },
    "coco": {
        "C": _both((70.6, 89.0, 93.5), (54.1, 77.3, 84.6)),
        "G": _both((74.9, 91.3, 95.2), (58.6, 81.3, 88.0)),
    },
    "flickr30k-cn": {
        "C": _both((90.3, 98.8, 99.7), (75.1, 92.9, 96.4)),
        "G": _both((92.9, 99.4, 99.8), (77.7, 94.8, 97.3)),
    },
    "coco-cn": {
        "C": _both((68.8, 92.0, 96.7), (68.9, 91.9, 96.5)),
        "G": _both((71.4, 93.9, 97.7), (73.8, 94.4, 98.1)),
    },
    "flickr30k-finetuned": {
        "C": {"image_to_text@1": 97.2, "text_to_image@1": 88.5},
        "G": {"image_to_text@1": 97.9, "text_to_image@1": 89.6},
    },
    "flickr30k-cn-finetuned": {
        "C": {"image_to_text@1": 96.5, "text_to_image@1": 85.2},
        "G": {"image_to_text@1": 96.9, "text_to_image@1": 85.9},
    },
    **{
        f"xtd-{code}": {"C": {"image_to_text@10": of_c}, "G": {"image_to_text@10": of_g}}
        for code, (of_c, of_g) in _XTD.items()
    },
}
"""By set and mode; "finetuned" are the models trained on that set's training split, 364 px."""
