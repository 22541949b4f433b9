"""The estimate against what torch counts, and the text that tells it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from internvl.adapt.lora import LoRA, add_adapters
from internvl.config import ChatConfig, ProjectorConfig, TextConfig, TilingConfig, VisionConfig
from internvl.data.batch import Batch, pack
from internvl.data.example import Branch, Example, Size
from internvl.data.spec import Batching, DataSpec
from internvl.models.vlm import VLM
from internvl.training.estimate import describe, duration, estimate, measure_rate, parameter_groups
from internvl.training.objectives import next_token
from internvl.training.optim import freeze, make_optimizer
from internvl.training.recipe import AdamW, Execution, Recipe, Rule
from internvl.training.workload import activation_bytes, step_flops, step_load
from tests.training.counting import Counter, saved_bytes

TRAINED = AdamW(lr=1e-3)
EVERYTHING: tuple[Rule, ...] = ((".*", TRAINED),)
PROJECTOR: tuple[Rule, ...] = ((r"projector\..*", TRAINED), (".*", None))
LANGUAGE: tuple[Rule, ...] = ((r"vit\..*", None), (".*", TRAINED))
ADAPTERS: tuple[Rule, ...] = ((r".*\.lora_.*", TRAINED), (".*", None))
NOTHING_BEFORE: tuple[Rule, ...] = ((r"llm\.layers\.1\..*", TRAINED), (".*", None))


def make_model(rules: Sequence[Rule]) -> VLM:
    """Wide enough for products to outweigh the rest; two layers each."""
    text = TextConfig(
        vocab_size=300,
        width=128,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        mlp_width=384,
        max_positions=4096,
    )
    vision = VisionConfig(image_size=112, width=96, num_layers=2, num_heads=4, mlp_width=384)
    model = VLM(
        ChatConfig(
            vision=vision,
            projector=ProjectorConfig(),
            text=text,
            tiling=TilingConfig(tile_size=112),
            template="internvl2_5",
        )
    )
    if rules is ADAPTERS:
        add_adapters(model, ((r"llm\.layers\..*", LoRA(rank=4)),), torch.Generator().manual_seed(0))
    freeze(model, rules)
    return model


def make_batch(tokens: int = 300, tiles: int = 6) -> tuple[Batch, Size]:
    half = tokens // 2
    example = Example(
        key="x",
        prefix=(3,) * half,
        slots=tuple(range(16 * tiles)),
        branches=(Branch((4,) * (tokens - half), (True,) * (tokens - half)),),
        tiles_N3HW=torch.randn(tiles, 3, 112, 112) if tiles else None,
    )
    return pack([example], 112), Size(tokens, tiles, tokens - half)


def make_recipe(rules: Sequence[Rule], **execution: object) -> Recipe:
    data = DataSpec(batching=Batching(examples=1))
    settings = Execution(**execution)  # type: ignore[arg-type]
    return Recipe(name="x", params=tuple(rules), steps=10, data=data, execution=settings)


@pytest.mark.parametrize("rules", [EVERYTHING, PROJECTOR, LANGUAGE, ADAPTERS, NOTHING_BEFORE])
@pytest.mark.parametrize("tiles", [0, 6])
def test_activations_are_what_autograd_keeps(rules: Sequence[Rule], tiles: int) -> None:
    model = make_model(rules)
    batch, size = make_batch(tiles=tiles)
    recipe = make_recipe(rules)
    logits = 8 * size.trained * model.config.text.vocab_size
    expected = activation_bytes(model, recipe, step_load(model, recipe, [size])) - logits
    assert saved_bytes(model, lambda: next_token(model, batch)) == pytest.approx(expected, rel=0.05)


def test_recomputed_layers_keep_their_input() -> None:
    model = make_model(EVERYTHING)
    _, size = make_batch()
    load = step_load(model, make_recipe(EVERYTHING), [size])
    patterns = (r"llm\.layers\.\d+", r"vit\.layers\.\d+")
    plain = activation_bytes(model, make_recipe(EVERYTHING), load)
    saved = activation_bytes(model, make_recipe(EVERYTHING, recompute=patterns), load)
    config = model.config
    layer_text = 4 * 300 * (6 * 128 + 3 * 128 + 3 * 384)
    layer_vision = 4 * 6 * 65 * (10 * 96 + 2 * 384)
    inputs = 4 * 300 * 128 * 2 + 4 * 6 * 65 * 96 * 2
    assert config.tokens_per_tile == 16
    assert saved == pytest.approx(
        plain - 2 * layer_text - 2 * layer_vision + inputs + max(layer_text, layer_vision)
    )


@pytest.mark.parametrize("rules", [EVERYTHING, PROJECTOR, LANGUAGE, ADAPTERS, NOTHING_BEFORE])
def test_operations_are_what_torch_counts(rules: Sequence[Rule]) -> None:
    """In bfloat16, whose products are those that torch's counter knows."""
    model = make_model(rules).bfloat16()
    batch, size = make_batch()
    recipe = make_recipe(rules)
    counter = Counter()
    with counter:
        next_token(model, batch).total.backward()
    expected = step_flops(model, recipe, step_load(model, recipe, [size]))
    assert counter.total == pytest.approx(expected, rel=0.15)


def test_cached_features_spare_the_tower() -> None:
    model = make_model(PROJECTOR)
    _, size = make_batch()
    recipe = make_recipe(PROJECTOR)
    load = step_load(model, recipe, [size])
    cached = make_recipe(PROJECTOR, cache_features=True)
    tower = 2 * 6 * 65 * (model.vit.embed.patch.weight.numel() + 2 * (4 * 96**2 + 2 * 96 * 384))
    attention = 2 * 6 * 65 * 4 * 65 * 96
    assert step_flops(model, recipe, load) - step_flops(model, cached, load) == tower + attention


def test_weights_gradients_and_moments_are_those_of_a_step() -> None:
    model = make_model(LANGUAGE)
    optimizer = make_optimizer(model, LANGUAGE)
    batch, size = make_batch()
    next_token(model, batch).total.backward()
    optimizer.step()
    made = estimate(model, replace(make_recipe(LANGUAGE), ema=0.9), [size])
    trained = [p for p in model.parameters() if p.requires_grad]
    assert made.weights == sum(p.numel() * p.element_size() for p in model.parameters())
    assert made.gradients == sum(
        p.grad.numel() * p.grad.element_size() for p in trained if p.grad is not None
    )
    moments = [x for state in optimizer.state.values() for x in state.values() if x.dim()]
    assert made.optimizer == sum(x.numel() * x.element_size() for x in moments)
    assert made.averages == 4 * sum(p.numel() for p in trained)
    parts = made.weights + made.gradients + made.optimizer + made.averages + made.activations
    assert made.memory == parts


def test_groups_cover_every_parameter_and_int8_weights() -> None:
    model = make_model(ADAPTERS)
    model.llm.layers[0].mlp.register_buffer("weight_int8", torch.zeros(10, 10, dtype=torch.int8))
    groups = {group.name: group for group in parameter_groups(model)}
    assert list(groups) == [
        "vit.embed",
        "vit.layers",
        "projector",
        "llm.embed",
        "llm.layers",
        "llm.norm",
        "llm.head",
    ]
    assert sum(g.total for g in groups.values()) == 100 + sum(p.numel() for p in model.parameters())
    assert sum(g.trained for g in groups.values()) == groups["llm.layers"].trained > 0
    assert groups["llm.layers"].dtypes == ("float32", "int8")


def test_processes_share_the_work_and_fsdp_the_weights() -> None:
    model = make_model(EVERYTHING)
    _, size = make_batch()
    sizes = [size]
    recipe = make_recipe(EVERYTHING, parallel="fsdp", accumulate=2)
    alone, shared = (estimate(model, recipe, sizes, processes=count, rate=1e9) for count in (1, 4))
    assert shared.weights == alone.weights // 4
    assert shared.optimizer == pytest.approx(alone.optimizer / 4, abs=8)
    assert shared.flops == alone.flops
    assert alone.seconds == pytest.approx(10 * alone.flops / 1e9)
    assert shared.seconds == pytest.approx(10 * alone.flops / 4e9)
    whole = estimate(model, make_recipe(EVERYTHING), sizes, processes=4)
    assert whole.weights == alone.weights
    assert whole.seconds is None
    assert shared.activations < alone.activations < whole.activations * 4


def test_a_step_of_packs_is_full() -> None:
    model = make_model(EVERYTHING)
    spec = DataSpec(batching=Batching(packs=2, max_tokens=1000, max_tiles=8))
    recipe = replace(make_recipe(EVERYTHING), data=spec)
    load = step_load(model, recipe, [Size(100, 0, 50), Size(300, 0, 150)])
    assert (load.tokens, load.tiles, load.trained, load.attended) == (2000, 0, 1000, 250)
    tiled = step_load(model, recipe, [Size(100, 2, 50)])
    assert (tiled.tokens, tiled.tiles) == (800, 16)  # the tiles fill a pack before the tokens do


def test_without_sizes_every_record_is_at_its_limit() -> None:
    model = make_model(EVERYTHING)
    spec = DataSpec(max_length=400, batching=Batching(examples=3, max_tiles=5))
    made = estimate(model, replace(make_recipe(EVERYTHING), data=spec))
    assert made.is_limit
    assert (made.load.tokens, made.load.tiles, made.load.trained) == (1200, 15, 3 * (400 - 5 * 16))


def test_a_model_without_storage_is_enough() -> None:
    with torch.device("meta"):
        model = VLM(make_model(EVERYTHING).config)
    freeze(model, EVERYTHING)
    _, size = make_batch()
    recipe = make_recipe(EVERYTHING)
    assert estimate(model, recipe, [size]) == estimate(make_model(EVERYTHING), recipe, [size])


def test_the_text_tells_all_of_it() -> None:
    model = make_model(PROJECTOR)
    _, size = make_batch()
    text = describe(estimate(model, make_recipe(PROJECTOR), [size], rate=1e9))
    count = sum(p.numel() for p in model.projector.parameters())
    assert text.splitlines()[0].split() == ["parameters", "total", "trained", "dtype", "size"]
    row = next(line.split() for line in text.splitlines() if line.split()[:1] == ["projector"])
    assert row[1:4] == [f"{count:,}", f"{count:,}", "float32"]
    for word in ("gradients", "optimizer", "activations", "TFLOP", "300 tokens", "150 trained", "6 tiles"):
        assert word in text
    assert "the run: 10 steps, about" in text
    assert "at the limit" not in text
    limit = describe(estimate(model, replace(make_recipe(PROJECTOR), steps=None, epochs=1.0)))
    assert "at the limit" in limit
    assert "unknown number of steps" in limit


def test_the_rate_is_operations_over_the_shortest_time() -> None:
    times = iter([0.0, 4.0, 10.0, 12.0, 20.0, 29.0])
    rate = measure_rate(make_recipe(EVERYTHING), torch.device("cpu"), clock=lambda: next(times))
    assert rate == 6 * 512 * 3 * 1024 * 4096 / 2.0


def test_durations() -> None:
    made = [duration(seconds) for seconds in (45, 720, 12_600, 181_440)]
    assert made == ["45 s", "12 min", "3.5 h", "2.1 days"]
