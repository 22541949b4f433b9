"""Places inside: of all, and of one client."""

from __future__ import annotations

import pytest

from internvl.errors import RequestError
from internvl.serving.admission import Admission


def test_places_are_given_back_once() -> None:
    admission = Admission(2)
    first, second = admission.enter("a"), admission.enter("b")
    with pytest.raises(RequestError, match="2 requests are running or waiting, the limit is 2") as caught:
        admission.enter("c")
    assert (caught.value.status, caught.value.code) == (429, "queue_full")
    leave = first.hand_over()
    first.leave()
    assert admission.num_inside == 2
    leave()
    leave()
    second.leave()
    assert (admission.num_inside, admission.num_refused) == (0, 1)


def test_one_client_has_its_own_limit() -> None:
    admission = Admission(9, per_client=2)
    places = [admission.enter("key 0"), admission.enter("key 0")]
    with pytest.raises(RequestError, match="of this key are running or waiting, its limit is 2") as caught:
        admission.enter("key 0")
    assert (caught.value.status, caught.value.code) == (429, "key_limit_reached")
    with admission.enter("key 1"):
        places.pop().leave()
        with admission.enter("key 0"):
            assert admission.num_inside == 3
    assert admission.num_inside == 1
    places.pop().leave()
    assert not admission._clients
