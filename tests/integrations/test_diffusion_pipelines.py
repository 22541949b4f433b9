"""Prompts of ours in tiny random pipelines of diffusers: SD, SDXL and PixArt."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from internvl.adapt.qlora import quantize_linears
from internvl.api.contrastive import TextModel
from internvl.errors import InputError
from internvl.integrations.diffusion import encode_prompts, install, prompt_embeds
from internvl.integrations.diffusion_adapters import (
    Adapter,
    AddedEmbedding,
    LanguageAdapter,
    LanguageAdapterXL,
    StatePool,
    TextProjection,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' own

ROOT = Path(__file__).parents[2]
WIDTH = 48
BLOCKS = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "block_out_channels": (8, 16)}
PARTS = ("text_encoder", "tokenizer", "safety_checker", "feature_extractor")


@pytest.fixture(scope="module")
def diffusers() -> Any:
    return pytest.importorskip("diffusers", reason="DIFFUSERS MISSING: pip install 'internvl[diffusion]'")


def parts(diffusers: Any) -> Mapping[str, Any]:
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, sample_size=16)
    return {"vae": vae, "scheduler": diffusers.DDIMScheduler()}


def unet(diffusers: Any, cross_width: int, **added: Any) -> Any:
    return diffusers.UNet2DConditionModel(
        **BLOCKS,
        **added,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        sample_size=8,
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=cross_width,
    )


def stable_diffusion(diffusers: Any) -> Any:
    return diffusers.StableDiffusionPipeline(
        **parts(diffusers),
        **dict.fromkeys(PARTS),
        unet=unet(diffusers, 32),
        requires_safety_checker=False,
    )


def sdxl(diffusers: Any) -> Any:
    added = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 2,
        "projection_class_embeddings_input_dim": 12 + 6 * 2,
    }
    names = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    return diffusers.StableDiffusionXLPipeline(
        **parts(diffusers), **dict.fromkeys(names), unet=unet(diffusers, 40, **added), add_watermarker=False
    )


def pixart(diffusers: Any) -> Any:
    transformer = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        cross_attention_dim=16,
        caption_channels=30,
        sample_size=8,
        use_additional_conditions=False,
    )
    return diffusers.PixArtAlphaPipeline(
        **parts(diffusers), tokenizer=None, text_encoder=None, transformer=transformer
    )


def language_adapter() -> Adapter:
    return LanguageAdapter(WIDTH, 32, 5).eval()


def xl_adapter() -> LanguageAdapterXL:
    adapters = (LanguageAdapter(WIDTH, 24, 5), LanguageAdapter(WIDTH, 16, 5))
    return LanguageAdapterXL(*adapters, StatePool(5, 40, 12), AddedEmbedding(24, 32)).eval()


def projection() -> TextProjection:
    return TextProjection(WIDTH, 16).eval()


KINDS: Mapping[str, tuple[Callable[[Any], Any], Callable[[], Adapter]]] = {
    "sd": (stable_diffusion, language_adapter),
    "sdxl": (sdxl, xl_adapter),
    "pixart": (pixart, projection),
}


def draw(pipe: Any, given: Mapping[str, Any]) -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    extra = {"use_resolution_binning": False} if hasattr(pipe, "transformer") else {}
    images: Tensor = pipe(
        **given,
        **extra,
        height=8,
        width=8,
        num_inference_steps=2,
        guidance_scale=4.0,
        output_type="pt",
        generator=torch.Generator().manual_seed(0),
    ).images
    return images


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, diffusers: Any) -> tuple[Any, Adapter]:
    make_pipe, make_adapter = KINDS[request.param]
    pipe, adapter = make_pipe(diffusers), make_adapter()
    install(pipe, adapter)
    return pipe, adapter


def test_pictures_follow_their_prompts(kind: tuple[Any, Adapter], text_model: TextModel) -> None:
    pipe, adapter = kind

    def picture(prompt: str, negative: str) -> Tensor:
        return draw(pipe, prompt_embeds(text_model, adapter, prompt, negative))

    first = picture("a red panda", "blurred")
    assert first.isfinite().all()
    assert torch.equal(first, picture("a red panda", "blurred"))
    assert not torch.equal(first, picture("一只猫", "blurred"))
    assert not torch.equal(first, picture("a red panda", ""))


def test_several_prompts_and_pictures_of_each(kind: tuple[Any, Adapter], text_model: TextModel) -> None:
    pipe, adapter = kind
    given = prompt_embeds(text_model, adapter, ["a red panda", "a cat"])
    assert len(draw(pipe, {**given, "num_images_per_prompt": 2})) == 4


def test_in_bfloat16(kind: tuple[Any, Adapter], text_model: TextModel) -> None:
    pipe, adapter = kind
    pipe.to(torch.bfloat16)
    assert draw(pipe, prompt_embeds(text_model, adapter.bfloat16(), "a red panda")).isfinite().all()


def test_the_adapter_run_once_is_the_adapter_run_at_every_step(diffusers: Any, text_model: TextModel) -> None:
    pipe, adapter = stable_diffusion(diffusers), language_adapter()
    once = draw(pipe, prompt_embeds(text_model, adapter, "a red panda", "blurred"))
    inner = pipe.unet.forward

    def forward(sample: Tensor, step: Tensor, encoder_hidden_states: Tensor, **rest: Any) -> Any:
        return inner(sample, step, adapter(encoder_hidden_states), **rest)

    pipe.unet.forward = forward
    raw = {
        "prompt_embeds": encode_prompts(text_model, "a red panda", length=77).states_BLD,
        "negative_prompt_embeds": encode_prompts(text_model, "blurred", length=77, prefix="").states_BLD,
    }
    torch.testing.assert_close(draw(pipe, raw), once, atol=1e-4, rtol=1e-4)


def test_pixart_sees_nothing_beyond_the_mask(diffusers: Any, text_model: TextModel) -> None:
    pipe, adapter = pixart(diffusers), projection()
    install(pipe, adapter)
    given = dict(prompt_embeds(text_model, adapter, "a red panda"))
    before = draw(pipe, given)
    states, mask = given["prompt_embeds"], given["prompt_attention_mask"]
    assert states is not None
    assert mask is not None
    torch.testing.assert_close(draw(pipe, {**given, "prompt_embeds": states * mask[..., None]}), before)


def test_installed_layers_are_copies_and_are_saved(diffusers: Any, tmp_path: Path) -> None:
    pipe, adapter = pixart(diffusers), projection()
    install(pipe, adapter)
    adapter.linear_1.weight.data.zero_()
    assert pipe.transformer.caption_projection.linear_1.weight.any()
    pipe.transformer.save_pretrained(tmp_path)
    loaded = diffusers.PixArtTransformer2DModel.from_pretrained(tmp_path)
    x = torch.randn(2, 3, WIDTH)
    assert torch.equal(loaded.caption_projection(x), pipe.transformer.caption_projection(x))

    unchanged, added = sdxl(diffusers), xl_adapter()
    own = {name: value.clone() for name, value in unchanged.unet.add_embedding.state_dict().items()}
    added.add_embedding = None
    install(unchanged, added)
    assert all(
        torch.equal(value, own[name]) for name, value in unchanged.unet.add_embedding.state_dict().items()
    )


def test_layers_that_do_not_fit_are_refused(diffusers: Any) -> None:
    with pytest.raises(InputError, match="has no transformer"):
        install(stable_diffusion(diffusers), projection())
    with pytest.raises(InputError, match="16 wide, that of the adapter 24"):
        install(pixart(diffusers), TextProjection(WIDTH, 24))
    with pytest.raises(InputError, match=r"unet\.add_embedding"):
        install(SimpleNamespace(unet=None), xl_adapter())
    install(SimpleNamespace(), language_adapter())  # which needs nothing of a pipeline


def test_the_how_to_runs(
    diffusers: Any, text_model: TextModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With tiny parts in place of what it downloads."""
    text = (ROOT / "docs" / "how-to" / "diffusion.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    pipe = stable_diffusion(diffusers)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("internvl.api.load.load_texts", lambda name, dtype: text_model)
    monkeypatch.setattr(
        diffusers.StableDiffusionPipeline, "from_pretrained", classmethod(lambda *_, **__: pipe)
    )
    torch.save(language_adapter().state_dict(), "sd15_aesthetic.pth")
    names: dict[str, Any] = {}
    for block in blocks:
        exec(
            compile(block.replace("num_inference_steps=20", "num_inference_steps=1"), "how-to", "exec"), names
        )
    assert names["image"].size == (8, 8)
    assert Path("own.safetensors").is_file()


def test_int8_changes_states_little(text_model: TextModel) -> None:
    before = encode_prompts(text_model, "a red panda").states_BLD
    quantize_linears(text_model.encoder, [r"qllama\.layers\..*"])
    after = encode_prompts(text_model, "a red panda").states_BLD
    assert not torch.equal(before, after)
    assert (before - after).abs().mean() < 0.05 * before.abs().mean()
