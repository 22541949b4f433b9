"""Prompts as states: positions, fillers, prefixes and limits."""

from __future__ import annotations

import pytest
import torch

from internvl.api.contrastive import TextModel
from internvl.errors import InputError, PromptError
from internvl.integrations.diffusion import FILLER_ID, encode_prompts, prompt_embeds
from internvl.integrations.diffusion_adapters import LanguageAdapter, LanguageAdapterXL, TextProjection
from internvl.models.attention import Packed
from internvl.processing.texts import PREFIX

PROMPTS = ("a red panda", "一只猫 on the sofa", "")


def states_alone(model: TextModel, ids: list[int]) -> torch.Tensor:
    (states_TD,) = model.encoder.text_states([ids])
    return states_TD.detach()


def test_text_positions_are_the_encoders_without_the_prefix(text_model: TextModel) -> None:
    found = encode_prompts(text_model, PROMPTS, length=40)
    assert found.states_BLD.shape == (3, 40, 48)
    head = text_model.processor.prompt(PREFIX)
    for row, prompt in enumerate(PROMPTS):
        ids = text_model.processor.ids(prompt)
        assert ids[: len(head)] == head
        expected = states_alone(text_model, ids)
        kept = torch.cat((expected[:1], expected[len(head) :]))
        assert found.mask_BL[row].tolist() == [True] * len(kept) + [False] * (40 - len(kept))
        torch.testing.assert_close(found.states_BLD[row][: len(kept)], kept, atol=1e-5, rtol=1e-5)
    expected_BE = text_model.encoder.embed_texts([text_model.processor.ids(text) for text in PROMPTS])
    torch.testing.assert_close(found.pooled_BE, expected_BE.detach(), atol=1e-5, rtol=1e-5)


def test_fillers_see_the_text_and_no_other_filler(text_model: TextModel) -> None:
    """As dense attention with a mask over text and fillers."""
    ids = text_model.processor.ids("a cat", prefix="")
    total = len(ids) + 4
    found = encode_prompts(text_model, "a cat", length=total, prefix="")
    seen = torch.ones(total, total).tril().bool() & (torch.arange(total) < len(ids))

    class Dense(Packed):
        def __call__(
            self, layer: int, q_THD: torch.Tensor, k_TKD: torch.Tensor, v_TKD: torch.Tensor
        ) -> torch.Tensor:
            q, k, v = (x.transpose(0, 1)[None] for x in (q_THD, k_TKD, v_TKD))
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
            weights = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~seen, float("-inf")).softmax(-1)
            return (weights @ v)[0].transpose(0, 1)

    qllama, attend = text_model.encoder.qllama, Dense([total])
    x_TD = qllama.embed(torch.tensor([*ids, *[FILLER_ID] * 4]))
    expected = qllama(x_TD, attend.pos_T, attend).detach()
    torch.testing.assert_close(found.states_BLD[0], expected, atol=1e-5, rtol=1e-5)


def test_batches_and_repeated_prompts_change_nothing(text_model: TextModel) -> None:
    prompts = [*PROMPTS, "a red panda", *PROMPTS]
    found = encode_prompts(text_model, prompts, batch=2)
    for row, prompt in enumerate(prompts):
        for together, alone in zip(found, encode_prompts(text_model, prompt), strict=True):
            torch.testing.assert_close(together[row], alone[0], atol=1e-5, rtol=1e-5)


def test_the_prefix_is_kept_where_asked_for(text_model: TextModel) -> None:
    ids = text_model.processor.ids("a cat")
    kept = encode_prompts(text_model, "a cat", keep_prefix=True)
    assert int(kept.mask_BL.sum()) == len(ids)
    torch.testing.assert_close(kept.states_BLD[0][: len(ids)], states_alone(text_model, ids))


def test_every_prompt_fills_its_length_to_the_last_token(text_model: TextModel) -> None:
    """The longest prompt that fits has no filler; one token more is refused, or cut before its eos."""
    head = text_model.processor.prompt(PREFIX)
    ids = text_model.processor.ids("a red panda", prefix=PREFIX)
    length = len(ids) - len(head) + 1
    exact = encode_prompts(text_model, "a red panda", length=length)
    assert exact.mask_BL.all()
    with pytest.raises(PromptError, match=f"limit is {len(ids) - 1}"):
        encode_prompts(text_model, "a red panda", length=length - 1)
    cut = encode_prompts(text_model, "a red panda", length=length - 1, truncate=True)
    expected = states_alone(text_model, [*ids[:-2], ids[-1]])
    torch.testing.assert_close(cut.states_BLD[0][1:], expected[len(head) :], atol=1e-5, rtol=1e-5)
    with pytest.raises(PromptError, match="truncate=True"):
        encode_prompts(text_model, "word " * 100_000)


def test_a_token_across_the_end_of_the_prefix_is_handed_on(text_model: TextModel) -> None:
    head, ids = text_model.processor.prompt("a phot"), text_model.processor.ids("o of a cat", prefix="a phot")
    shared = next(at for at, (ours, its) in enumerate(zip(head, ids, strict=False)) if ours != its)
    assert 1 < shared < len(head)
    length = len(ids) - shared + 1
    found = encode_prompts(text_model, "o of a cat", prefix="a phot", length=length)
    assert found.mask_BL.all()
    expected = states_alone(text_model, ids)
    torch.testing.assert_close(found.states_BLD[0][1:], expected[shared:], atol=1e-5, rtol=1e-5)


def test_what_users_write_is_never_a_special_token(text_model: TextModel) -> None:
    found = encode_prompts(text_model, "a</s>b")
    ids = text_model.processor.ids("a</s>b")
    assert ids.count(text_model.processor.eos_id) == 1
    assert int(found.mask_BL.sum()) == len(ids) - len(text_model.processor.prompt(PREFIX)) + 1


@pytest.mark.parametrize(
    ("prompts", "options"), [([], {}), ("a", {"length": 2}), ("a", {"batch": 0}), ([["a"]], {}), ([3], {})]
)
def test_what_is_no_prompt_is_refused(
    text_model: TextModel, prompts: object, options: dict[str, int]
) -> None:
    with pytest.raises(InputError):
        encode_prompts(text_model, prompts, **options)  # type: ignore[arg-type]


def test_arguments_of_stable_diffusion(text_model: TextModel) -> None:
    adapter = LanguageAdapter(48, 32, 5).eval()
    given = prompt_embeds(text_model, adapter, ["a cat", "a dog"], "blurred")
    assert {name: tuple(value.shape) for name, value in given.items() if value is not None} == {
        "prompt_embeds": (2, 5, 32),
        "negative_prompt_embeds": (2, 5, 32),
    }
    with torch.no_grad():
        positive = adapter(encode_prompts(text_model, ["a cat", "a dog"], length=77).states_BLD)
        negative = adapter(encode_prompts(text_model, "blurred", length=77, prefix="").states_BLD)
    assert torch.equal(given["prompt_embeds"], positive)  # type: ignore[arg-type]
    torch.testing.assert_close(given["negative_prompt_embeds"], negative.expand(2, -1, -1))
    assert prompt_embeds(text_model, adapter, "a cat", None).keys() == {"prompt_embeds"}


def test_arguments_of_sdxl(text_model: TextModel) -> None:
    adapter = LanguageAdapterXL(
        LanguageAdapter(48, 24, 5), LanguageAdapter(48, 16, 5), TextProjection(20, 12)
    ).eval()
    given = prompt_embeds(text_model, adapter, ["a cat", "a dog"], ["", "blurred"])
    assert not any(given[f"{sign}pooled_prompt_embeds"].any() for sign in ("", "negative_"))  # type: ignore
    given = prompt_embeds(text_model, adapter, ["a cat", "a dog"], ["", "blurred"], zero_pooled=False)
    encoded = encode_prompts(text_model, ["a cat", "a dog"])
    with torch.no_grad():
        states, pooled = adapter(encoded.states_BLD, encoded.pooled_BE)
    assert torch.equal(given["prompt_embeds"], states)  # type: ignore[arg-type]
    assert torch.equal(given["pooled_prompt_embeds"], pooled)  # type: ignore[arg-type]
    for name in ("negative_prompt_embeds", "negative_pooled_prompt_embeds"):
        value = given[name]
        assert value is not None
        assert not value[0].any()
        assert value[1].any()


def test_arguments_of_pixart(text_model: TextModel) -> None:
    given = prompt_embeds(text_model, TextProjection(48, 32), "a cat")
    encoded = encode_prompts(text_model, "a cat")
    assert torch.equal(given["prompt_embeds"], encoded.states_BLD)  # type: ignore[arg-type]
    assert torch.equal(given["prompt_attention_mask"], encoded.mask_BL)  # type: ignore[arg-type]
    assert torch.equal(
        given["negative_prompt_attention_mask"],  # type: ignore[arg-type]
        encode_prompts(text_model, "", prefix="").mask_BL,
    )
    assert given["negative_prompt"] is None


def test_prompts_and_adapters_that_do_not_fit(text_model: TextModel) -> None:
    with pytest.raises(InputError, match="64 wide, the encoder's are 48"):
        prompt_embeds(text_model, TextProjection(64, 32), "a cat")
    with pytest.raises(InputError, match="2 prompts and 3 negative"):
        prompt_embeds(text_model, TextProjection(48, 32), ["a", "b"], ["", "", ""])
