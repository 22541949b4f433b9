"""Every rule undoes itself, every key is used exactly once."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from internvl.checkpoints.lazy import Held, Lazy, fetch
from internvl.checkpoints.rules import (
    Heads,
    Rule,
    convert,
    copy,
    drop,
    fused,
    linear,
    original_names,
    regrouped,
    strictly,
    under,
)
from internvl.errors import WeightsError

RULES: tuple[Rule, ...] = (
    copy("norm.weight", "norm.weight"),
    *linear("h.{i}.o", "layers.{i}.out"),
    *fused(["h.{i}.q", "h.{i}.k", "h.{i}.v"], "layers.{i}.qkv", "heads"),
    *fused(["h.{i}.gate", "h.{i}.up"], "layers.{i}.gate_up"),
    *drop("h.{i}.inv_freq", "junk.{any}"),
)
HEADS = Heads(4, 2)


def held(**shapes: tuple[int, ...]) -> dict[str, Lazy]:
    return {name.replace("__", "."): Held(torch.randn(shape), name) for name, shape in shapes.items()}


def layer() -> dict[str, Lazy]:
    return held(
        norm__weight=(8,),
        h__0__o__weight=(8, 8),
        h__0__o__bias=(8,),
        h__0__q__weight=(12, 8),
        h__0__k__weight=(6, 8),
        h__0__v__weight=(6, 8),
        h__0__gate__weight=(10, 8),
        h__0__up__weight=(10, 8),
    )


def test_there_and_back_again() -> None:
    theirs = layer()
    ours = strictly(convert(theirs, RULES, HEADS))
    assert set(ours) == {
        "norm.weight",
        "layers.0.out.weight",
        "layers.0.out.bias",
        "layers.0.qkv.weight",
        "layers.0.gate_up.weight",
    }
    back = strictly(convert(ours, RULES, HEADS, back=True))
    assert back.keys() == theirs.keys()
    assert all(torch.equal(fetch(back[name]), fetch(theirs[name])) for name in theirs)


def test_fused_parts_keep_their_order() -> None:
    theirs = layer()
    qkv = fetch(convert(theirs, RULES, HEADS).tensors["layers.0.qkv.weight"])
    parts = [fetch(theirs[f"h.0.{part}.weight"]) for part in "qkv"]
    assert torch.equal(qkv, torch.cat(parts))


def test_unknown_keys_are_named() -> None:
    theirs = {**layer(), **held(h__x__o__weight=(8, 8), surprise=(1,))}
    converted = convert(theirs, RULES, HEADS)
    assert converted.unexpected == ("h.x.o.weight", "surprise")
    with pytest.raises(WeightsError, match=r"no rule for 2 keys: h\.x\.o\.weight, surprise"):
        strictly(converted)


def test_a_missing_partner_is_named() -> None:
    theirs = layer()
    del theirs["h.0.k.weight"]
    converted = convert(theirs, RULES, HEADS)
    assert converted.incomplete == {"layers.0.qkv.weight": ("h.0.k.weight",)}
    assert not converted.unexpected
    with pytest.raises(WeightsError, match=r"h\.0\.k\.weight is missing"):
        strictly(converted)


def test_dropped_keys_are_used_up_and_not_written() -> None:
    theirs = {**layer(), **held(h__0__inv_freq=(4,), junk__a__b=(1,))}
    ours = strictly(convert(theirs, RULES, HEADS))
    assert not [name for name in ours if "inv_freq" in name or "junk" in name]
    assert strictly(convert(ours, RULES, HEADS, back=True)).keys() == layer().keys()


def test_parts_of_different_width_do_not_fuse() -> None:
    theirs = {**layer(), **held(h__0__k__weight=(6, 7))}
    with pytest.raises(WeightsError, match=r"differ in width: .*\(6, 7\)"):
        convert(theirs, RULES, HEADS)


def test_names_are_not_patterns() -> None:
    assert convert(held(normXweight=(8,)), RULES, HEADS).unexpected == ("normXweight",)


@given(key_value=st.integers(1, 4), group=st.integers(1, 4), dim=st.integers(1, 5), width=st.integers(1, 3))
def test_regrouping_is_the_published_split(key_value: int, group: int, dim: int, width: int) -> None:
    """`wqkv` rows are (kv, q per kv + 2, dim): query [:, :-2], key [:, -2], value [:, -1]."""
    packed = torch.randn(key_value * (group + 2) * dim, width)
    blocks = packed.view(key_value, group + 2, dim, width)
    parts = (blocks[:, :-2], blocks[:, -2], blocks[:, -1])
    expected = torch.cat([part.reshape(-1, width) for part in parts])
    rules, heads = regrouped("wqkv", "qkv"), Heads(group * key_value, key_value)
    ours = strictly(convert({"wqkv.weight": Held(packed)}, rules, heads))
    assert torch.equal(fetch(ours["qkv.weight"]), expected)
    back = strictly(convert(ours, rules, heads, back=True))
    assert torch.equal(fetch(back["wqkv.weight"]), packed)


def test_regrouping_needs_whole_heads() -> None:
    theirs: dict[str, Lazy] = {"wqkv.weight": Held(torch.randn(15, 2), "wqkv.weight")}
    with pytest.raises(WeightsError, match=r"wqkv\.weight has 15 rows, not a multiple of the 8 heads"):
        convert(theirs, regrouped("wqkv", "qkv"), HEADS)


def test_prefixes_on_both_sides() -> None:
    rules = under(RULES, "lm.", "llm.")
    theirs = {f"lm.{name}": tensor for name, tensor in layer().items()}
    assert "llm.layers.0.qkv.weight" in strictly(convert(theirs, rules, HEADS))
    assert original_names("llm.layers.7.qkv.weight", rules) == (
        "lm.h.7.q.weight",
        "lm.h.7.k.weight",
        "lm.h.7.v.weight",
    )
    assert original_names("llm.layers.7.nothing", rules) == ()
