"""What stands at a position is a function of seed and position; replacements come in a fixed order."""

from __future__ import annotations

from dataclasses import replace

import pytest

from internvl.data.example import Size
from internvl.data.mixture import Mixture
from internvl.data.places import Place, Places
from internvl.data.spec import BadSamples, Batching, DataSpec
from internvl.errors import ImageError
from tests.data.fakes import FakeExamples, data_set

SPEC = DataSpec(batching=Batching(packs=1, max_tokens=100, max_tiles=4))
EVERYTHING = Size(tokens=100, tiles=4)


def make_places(*rows: tuple[int, int, str], spec: DataSpec = SPEC, seed: int = 0) -> Places:
    return Places(Mixture([data_set(rows)], seed=3), FakeExamples(), spec, seed)


def at_row(places: Places, row: int) -> Place:
    positions = range(len(places.mixture))
    return next(
        place for place in map(places.find, positions) if places.mixture.pick(place.position).row == row
    )


def test_a_good_record_stands_for_itself() -> None:
    place = at_row(make_places((5, 1, ""), (6, 2, "")), 1)
    assert (place.attempt, place.pick.row, place.bad) == (0, 1, ())
    assert place.size is not None
    assert (place.size.tokens, place.size.tiles) == (6, 2)


def test_examples_depend_on_seed_and_position() -> None:
    def target(seed: int, position: int) -> int:
        places = make_places((5, 1, ""), (5, 1, ""), seed=seed)
        return places.make(places.find(position)).branches[0].ids[0]

    assert target(0, 0) == target(0, 0)
    assert len({target(0, 0), target(0, 1), target(0, 2), target(1, 0)}) == 4


@pytest.mark.parametrize("fault", ["row", "measure"])
def test_broken_ones_are_replaced_when_found(fault: str) -> None:
    places = make_places((5, 1, fault), (6, 1, fault), (7, 1, ""))
    for row in (0, 1):
        place = at_row(places, row)
        assert place.pick.row == 2
        assert place.attempt == len(place.bad) <= 2
        assert place.bad[0].key == f"rows:{row}"


def test_other_policies_leave_the_place_empty() -> None:
    for policy in (BadSamples(policy="skip"), BadSamples(policy="stop")):
        spec = replace(SPEC, bad_samples=policy)
        place = at_row(make_places((5, 1, "measure"), (7, 1, ""), spec=spec), 0)
        assert place.size is None
        assert [bad.key for bad in place.bad] == ["rows:0"]


def test_only_skipping_decodes_while_planning() -> None:
    rows = ((5, 1, "decode"), (7, 1, ""))
    for policy in (BadSamples(), BadSamples(policy="stop"), BadSamples(policy="skip")):
        place = at_row(make_places(*rows, spec=replace(SPEC, bad_samples=policy)), 0)
        assert (place.size is None) == (policy.policy == "skip")


def test_a_substitute_fits_and_can_be_made() -> None:
    rows = ((5, 1, "decode"), (90, 1, ""), (5, 4, ""), (6, 1, "decode"), (7, 1, ""))
    places = make_places(*rows)
    place = at_row(places, 0)
    with pytest.raises(ImageError):
        places.make(place)
    found, example, bad = places.substitute(place, Size(tokens=50, tiles=2))
    assert found is not None
    assert example is not None
    assert (found.pick.row, example.key, example.size.tokens) == (4, "rows:4", 7)
    assert {one.key for one in bad} <= {"rows:3"}
    assert found.position == place.position


def test_nothing_fits() -> None:
    places = make_places((5, 1, "decode"), (90, 1, ""))
    assert places.substitute(at_row(places, 0), Size(tokens=50, tiles=4)) == (None, None, [])
    found, _, _ = places.substitute(at_row(places, 0), EVERYTHING)
    assert found is not None
