"""GGUF files written here by the gguf package, read back by ours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from internvl.checkpoints.gguf import GGUF
from internvl.config import RopeConfig, TextConfig
from internvl.errors import ConfigError, TokenizerError, WeightsError

gguf = pytest.importorskip("gguf")

WIDTH, HEADS, KV_HEADS, MLP, TOKENS = 32, 4, 2, 64, ["<|end|>", "a", "b", "ab", "Ġ", "!"]
SHAPES = {
    "self_attn.q_proj": ("attn_q", (WIDTH, WIDTH)),
    "self_attn.k_proj": ("attn_k", (KV_HEADS * 8, WIDTH)),
    "self_attn.v_proj": ("attn_v", (KV_HEADS * 8, WIDTH)),
    "self_attn.o_proj": ("attn_output", (WIDTH, WIDTH)),
    "mlp.gate_proj": ("ffn_gate", (MLP, WIDTH)),
    "mlp.up_proj": ("ffn_up", (MLP, WIDTH)),
    "mlp.down_proj": ("ffn_down", (WIDTH, MLP)),
    "input_layernorm": ("attn_norm", (WIDTH,)),
    "post_attention_layernorm": ("ffn_norm", (WIDTH,)),
}


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to query and key rows of a rotate-half model."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def write(path: Path, *, quantised: bool = False, **changes: object) -> dict[str, np.ndarray]:
    """A one-layer Llama file; returns its weights by Llama-layout name, before the permutation."""
    random = np.random.default_rng(0)
    weights = {"model.embed_tokens": random.normal(size=(len(TOKENS), WIDTH)).astype(np.float32)}
    weights["model.norm"] = random.normal(size=WIDTH).astype(np.float32)
    writer = gguf.GGUFWriter(path, str(changes.get("architecture", "llama")))
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(5000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(str(changes.get("pre", "smollm")))
    writer.add_token_list(changes.get("tokens", TOKENS))
    writer.add_token_types([3, *[1] * (len(TOKENS) - 1)])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(0)
    writer.add_tensor("token_embd.weight", weights["model.embed_tokens"])
    writer.add_tensor("output_norm.weight", weights["model.norm"])
    for name, (theirs, shape) in SHAPES.items():
        weight = random.normal(size=shape).astype(np.float32)
        weights[f"model.layers.0.{name}"] = weight
        heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(theirs)
        stored = weight if heads is None else interleaved(weight, heads)
        if quantised and stored.ndim == 2:
            packed = gguf.quants.quantize(stored, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(f"blk.0.{theirs}.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(f"blk.0.{theirs}.weight", stored)
    if "extra" in changes:
        writer.add_tensor(str(changes["extra"]), np.zeros(4, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def test_weights_come_back_in_rotate_half_order_and_tied(tmp_path: Path) -> None:
    expected = write(tmp_path / "m.gguf")
    expected["lm_head"] = expected["model.embed_tokens"]
    read = dict(GGUF(tmp_path / "m.gguf").tensors())
    assert set(read) == {f"{name}.weight" for name in expected}
    for name, weight in expected.items():
        torch.testing.assert_close(read[f"{name}.weight"], torch.from_numpy(weight), rtol=0, atol=0)


def test_quantised_weights_are_near(tmp_path: Path) -> None:
    expected = write(tmp_path / "m.gguf", quantised=True)
    read = dict(GGUF(tmp_path / "m.gguf").tensors())
    for name, weight in expected.items():
        torch.testing.assert_close(read[f"{name}.weight"], torch.from_numpy(weight), rtol=0, atol=0.02)


def test_config(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf")
    assert GGUF(tmp_path / "m.gguf").config == TextConfig(
        vocab_size=len(TOKENS),
        width=WIDTH,
        num_layers=1,
        num_heads=HEADS,
        num_kv_heads=KV_HEADS,
        head_dim=8,
        mlp_width=MLP,
        norm_eps=1e-5,
        rope=RopeConfig(theta=5000.0),
        max_positions=128,
    )


def test_vocabulary(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf")
    vocabulary = GGUF(tmp_path / "m.gguf").vocabulary()
    assert vocabulary.tokens == tuple(TOKENS)
    assert (vocabulary.special, vocabulary.eos, vocabulary.bos) == (("<|end|>",), "<|end|>", None)
    assert (vocabulary.merges, vocabulary.pre, vocabulary.adds_bos) == (("a b",), "smollm", False)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", architecture="bert")
    with pytest.raises(ConfigError, match="architecture 'bert'"):
        GGUF(tmp_path / "m.gguf")


def test_unknown_words_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", pre="klingon")
    with pytest.raises(TokenizerError, match="klingon"):
        GGUF(tmp_path / "m.gguf").vocabulary()


@pytest.mark.parametrize("tokens", [TOKENS[:-1], [*TOKENS[:-1], "a"]])
def test_a_vocabulary_that_does_not_fit_is_refused(tmp_path: Path, tokens: list[str]) -> None:
    write(tmp_path / "m.gguf", tokens=tokens)
    with pytest.raises(TokenizerError, match="embedding of 6 rows"):
        GGUF(tmp_path / "m.gguf").vocabulary()


def test_an_unknown_tensor_is_named(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", extra="blk.0.ffn_gate_inp.weight")
    with pytest.raises(WeightsError, match="ffn_gate_inp"):
        list(GGUF(tmp_path / "m.gguf").tensors())


@pytest.mark.parametrize("size", [0, 3, 40, 500, 20_000])
def test_a_cut_file_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "m.gguf"
    write(path)
    whole = path.read_bytes()
    assert len(whole) > size
    path.write_bytes(whole[:size])
    with pytest.raises((WeightsError, ConfigError), match=r"m\.gguf"):
        list(GGUF(path).tensors())


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no GGUF file"):
        GGUF(tmp_path / "m.gguf")
