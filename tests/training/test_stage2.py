"""Stage 2: its passes against the model's own, which wrong texts are drawn, and what its parts add up to."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from internvl.errors import ConfigError
from internvl.models.attention import Looks, Packed
from internvl.models.dual_encoder import DualEncoder
from internvl.training.dual_forward import query_states
from internvl.training.loss import Loss
from internvl.training.objective_spec import Stage2
from internvl.training.objectives import make_objective
from internvl.training.stage2 import Matches, draw_matches
from internvl.training.world import World
from tests.training.dual import draws, dual_encoder, pairs

CAPTIONS = [((1, 6, 11, 12, 2), 2), ((13, 2), 0), ((1, 6, 14), 3)]
MATCHES = [[(1, 11, 2), (1, 12)], [(13,), (14, 15, 16)], [(1, 17, 2), (1,)]]


def alone(model: DualEncoder, features: Tensor, picture: int, ids: tuple[int, ...], prefix: int) -> Tensor:
    """States of queries and text of one picture, run by themselves."""
    qllama, count = model.generator, model.config.num_queries
    looks = Looks(torch.arange(count)[None], torch.tensor([picture]), features)
    attend = Packed([count + len(ids)], prefixes=[prefix], looks=looks)
    x_TD = torch.cat((qllama.queries[0], qllama.embed(torch.tensor(ids, dtype=torch.long))))
    states: Tensor = qllama(x_TD, attend.pos_T, attend)
    return states


def test_one_pass_is_every_sequence_alone() -> None:
    model = dual_encoder()
    features, count = torch.randn(3, 5, 16), model.config.num_queries
    with torch.no_grad():
        states = query_states(model, features, CAPTIONS, MATCHES)
        torch.testing.assert_close(states.alone_BQD, model.query_states(features), rtol=1e-4, atol=1e-5)
        written: list[Tensor] = []
        targets: list[int] = []
        for picture, (ids, given) in enumerate(CAPTIONS):
            expected_TD = alone(model, features, picture, ids, count)
            written.append(expected_TD[count + given - 1 : -1])
            targets += ids[given:]
            for number, text in enumerate(MATCHES[picture]):
                expected_TD = alone(model, features, picture, text, count + len(text))
                matched_QD = states.matched_BMQD[picture, number]
                torch.testing.assert_close(matched_QD, expected_TD[:count], rtol=1e-4, atol=1e-5)
    assert states.targets_A.tolist() == targets == [11, 12, 2, 13, 2]
    torch.testing.assert_close(states.written_AD, torch.cat(written), rtol=1e-4, atol=1e-5)


def test_nothing_to_write_or_to_match() -> None:
    model, features = dual_encoder(), torch.randn(2, 5, 16)
    states = query_states(model, features, [], [(), ()])
    torch.testing.assert_close(states.alone_BQD, model.query_states(features), rtol=1e-4, atol=1e-5)
    assert states.matched_BMQD.shape == (2, 0, 5, 24)
    assert len(states.written_AD) == len(states.targets_A) == 0


TEXTS = ((1, 11, 2), (1, 12, 13, 2), (1, 14, 2), (1, 11, 2), (1, 15, 2))
PICTURES = torch.tensor([0, 1, 2, 3, 1])


def draw(spec: Stage2, similarity_BG: Tensor | None = None, seed: int = 0) -> Matches:
    similarity_BG = torch.zeros(5, 5) if similarity_BG is None else similarity_BG
    return draw_matches(TEXTS, PICTURES, draws(5, seed), similarity_BG, spec, World())


def test_a_wrong_text_is_of_another_picture_and_has_other_words() -> None:
    """0 and 3 have the same words, 1 and 4 the same picture; what may be drawn is drawn in time."""
    seen: list[set[tuple[int, ...]]] = [set() for _ in TEXTS]
    for seed in range(60):
        for number, (wrong, own) in enumerate(draw(Stage2(), seed=seed).ids):
            assert own == TEXTS[number]
            seen[number].add(tuple(wrong))
    a, b, c, _, e = TEXTS
    assert seen == [{b, c, e}, {a, c}, {a, b, e}, {b, c, e}, {a, c}]


def test_similar_texts_are_drawn_more_often_where_asked() -> None:
    similarity_BG = torch.zeros(5, 5)
    similarity_BG[0, 2] = similarity_BG[0, 0] = 30.0
    for hard in (True, False):
        spec = Stage2(hard_negatives=hard)
        drawn = [tuple(draw(spec, similarity_BG, seed).ids[0][0]) for seed in range(30)]
        assert (set(drawn) == {TEXTS[2]}) is hard


def test_half_is_right_and_wrong_in_turn_and_both_is_both() -> None:
    half, both = draw(Stage2(matches="half")), draw(Stage2())
    belongs = half.belongs_BM[:, 0]
    assert belongs[draws(5).argsort()].tolist() == [False, True, False, True, False]
    assert [tuple(half.ids[number][0]) == TEXTS[number] for number in range(5)] == belongs.tolist()
    assert both.belongs_BM.tolist() == [[False, True]] * 5
    assert half.counts_BM.all()
    assert both.counts_BM.all()


@pytest.mark.parametrize(("matches", "counts"), [("half", [[False], [True]]), ("both", [[False, True]] * 2)])
def test_where_there_is_no_other_text_no_wrong_one_counts(matches: str, counts: list[list[bool]]) -> None:
    spec = Stage2(matches="half" if matches == "half" else "both")
    drawn = draw_matches(
        TEXTS[:2], torch.tensor([7, 7]), torch.tensor([3, 8]), torch.zeros(2, 2), spec, World()
    )
    assert drawn.counts_BM.tolist() == counts


@pytest.mark.parametrize("spec", [Stage2(), Stage2(matches="half"), Stage2(hard_negatives=False)])
def test_what_is_drawn_is_the_pairs_own(spec: Stage2) -> None:
    """In another order, as several processes hold a step, each pair has the same texts; and nothing else that
    was drawn before changes them."""
    similarity_BG = torch.randn(5, 5, generator=torch.Generator().manual_seed(1))
    numbers = draws(5)
    expected = draw_matches(TEXTS, PICTURES, numbers, similarity_BG, spec, World())
    for order in ([4, 3, 2, 1, 0], [2, 0, 4, 1, 3]):
        torch.rand(3)
        found = draw_matches(
            [TEXTS[place] for place in order],
            PICTURES[order],
            numbers[order],
            similarity_BG[order][:, order],
            spec,
            World(),
        )
        assert found.ids == [expected.ids[place] for place in order]
        assert torch.equal(found.belongs_BM, expected.belongs_BM[order])
        assert torch.equal(found.counts_BM, expected.counts_BM[order])


def parts(spec: Stage2) -> Loss:
    torch.manual_seed(1)
    return make_objective(spec)(dual_encoder(), pairs())


def test_the_loss_is_the_weighted_sum_of_its_means() -> None:
    loss = parts(Stage2(itc=0.5, itm=2.0, itg=3.0))
    means = {name: value / loss.weight for name, value in loss.metrics.items()}
    expected = 0.5 * means["itc"] + 2 * means["itm"] + 3 * means["itg"]
    assert loss.weight == 6
    assert float(loss.total.detach()) / 6 == pytest.approx(expected, rel=1e-6)
    assert means.keys() == {"itc", "itm", "itg", "accuracy", "match_accuracy", "scale"}
    assert all(0 <= means[name] <= 1 for name in ("accuracy", "match_accuracy"))


@pytest.mark.parametrize(
    ("name", "spec"), [("itc", Stage2(itc=0)), ("itm", Stage2(itm=0)), ("itg", Stage2(itg=0))]
)
def test_a_part_of_weight_0_is_left_out_and_changes_no_other(name: str, spec: Stage2) -> None:
    whole, without = parts(Stage2()), parts(spec)
    assert name not in without.metrics
    for other in {"itc", "itm", "itg"} - {name}:
        assert without.metrics[other] == pytest.approx(whole.metrics[other], rel=1e-5)


def test_the_backbone_learns_only_where_it_is_compared() -> None:
    for backbone in (False, True):
        model = dual_encoder()
        make_objective(Stage2(backbone=backbone))(model, pairs()).total.backward()
        without = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is None}
        assert without == (set() if backbone else {"image_pool"})


def test_cached_features_and_bfloat16_are_near() -> None:
    exact, batch = parts(Stage2()), pairs()
    cached = replace(batch, features_BPC=dual_encoder().vit(batch.tiles_B3HW).detach())
    torch.manual_seed(1)
    again = make_objective(Stage2())(dual_encoder(), cached)
    assert float(again.total.detach()) == pytest.approx(float(exact.total.detach()), rel=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert float(parts(Stage2()).total.detach()) == pytest.approx(float(exact.total.detach()), rel=0.05)


def test_a_model_without_queries_is_refused() -> None:
    with pytest.raises(ConfigError, match="InternVL-C alone"):
        make_objective(Stage2())(dual_encoder(num_queries=0), pairs())
