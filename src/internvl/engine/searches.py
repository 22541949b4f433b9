"""Requests that are searched with beams: one at a time, a step of it in each step of the engine.

A search knows its answer only at the end, and its beams have a cache of their own beside the pages. Knows
`generation.beam`; no pages and no scheduling. Shape letters: S vision tokens, D text width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from internvl.engine.page_keys import Span
from internvl.engine.request import Delta, EndReason, EngineRequest, EngineUsage
from internvl.engine.vision_encoder import Wanted
from internvl.errors import InternVLError, WeightsError
from internvl.generation.beam import BeamSearch, Finished
from internvl.generation.prompt import Prompt
from internvl.generation.result import Token
from internvl.generation.stream import Decode, TextStream
from internvl.models.vlm import VLM


class Search:
    """One request, its pictures with the keys they have in its tower, and its search once it runs."""

    def __init__(
        self,
        request: EngineRequest,
        images: Sequence[Wanted],
        spans: Sequence[Span],
        seen_ids: Sequence[int],
        decode: Decode | None,
    ) -> None:
        self.request, self.images, self.spans = request, images, spans
        self.seen_ids, self.decode = seen_ids, decode
        self.vision: dict[bytes, Tensor] = {}
        self.has_asked = False
        self.beams: BeamSearch | None = None

    def missing_images(self) -> list[Wanted]:
        """Pictures whose vision tokens are not here."""
        if self.beams is not None:
            return []
        return [one for one in self.images if one.image.key not in self.vision]

    def step(self, vlm: VLM, chunk: int) -> bool:
        """Goes on by one step; returns whether that was the last one."""
        if self.beams is None:
            prompt = Prompt(self._embed(vlm), self.request.sampling, self.seen_ids)
            self.beams = BeamSearch(vlm.llm, prompt, chunk)
            self.vision = {}
        self.beams.step()
        return self.beams.is_done

    def deltas(self) -> list[Delta]:
        """The best beams as answers, token by token; what they took comes with the last one."""
        assert self.beams is not None
        best = self.beams.finals.best(self.request.n)
        deltas = [delta for index, beam in enumerate(best) for delta in self._spell(index, beam)]
        return [*deltas[:-1], self._with_usage(deltas[-1], sum(len(beam.ids) for beam in best))]

    def end(self, reason: EndReason, error: InternVLError | None = None) -> list[Delta]:
        """No answer, and why."""
        ends = [
            Delta(key=self.request.key, index=index, finish_reason=reason, error=error)
            for index in range(self.request.n)
        ]
        return [*ends[:-1], self._with_usage(ends[-1], 0)]

    def end_late(self, reason: InternVLError) -> list[Delta]:
        """The best beams so far as answers; where there are none yet, no answer for this reason."""
        if self.beams is None or self.beams.running.ids == [[]]:
            return self.end("error", reason)
        self.beams.cancel()
        return [
            replace(one, finish_reason="deadline") if one.finish_reason == "cancelled" else one
            for one in self.deltas()
        ]

    def _spell(self, index: int, beam: Finished) -> list[Delta]:
        stream = TextStream(self.decode, ())
        deltas = []
        for place, id in enumerate(beam.ids):
            reason = beam.reason if place == len(beam.ids) - 1 else None
            text = "" if reason == "stop" else stream.push(id)
            text += stream.finish() if reason else ""
            token = Token(sequence=index, id=id, text=text, finish_reason=reason)
            deltas.append(
                Delta(key=self.request.key, index=index, token=token, text=text, finish_reason=reason)
            )
        return deltas

    def _with_usage(self, last: Delta, new_tokens: int) -> Delta:
        usage = EngineUsage(
            prompt_tokens=len(self.request.ids),
            completion_tokens=new_tokens,
            cached_tokens=0,
            image_tokens=sum(span.end - span.start for span in self.spans),
        )
        return replace(last, usage=usage)

    @torch.inference_mode()
    def _embed(self, vlm: VLM) -> Tensor:
        device = vlm.llm.embed.weight.device
        ids_T = torch.tensor(self.request.ids, device=device)
        if not self.spans:
            return vlm.llm.embed(ids_T)  # type: ignore[no-any-return]
        slots_S = torch.cat([torch.arange(span.start, span.end) for span in self.spans]).to(device)
        return vlm.embed(ids_T, slots_S, torch.cat([self.vision[span.key] for span in self.spans]))


class Searches:
    """Those that wait, and the one that runs: best priority first, then the client that has waited longest
    for a turn, then who came first."""

    def __init__(self, models: Mapping[str, VLM], chunk: int) -> None:
        self.models, self.chunk = models, chunk
        self.waiting: list[Search] = []
        self.num_begun = 0
        self._turns: dict[str, int] = {}

    def add(self, search: Search) -> None:
        """Queues a search, behind the one that runs."""
        self.waiting.append(search)
        self._sort()

    def _sort(self) -> None:
        def turn(search: Search) -> tuple[bool, int, int]:
            request = search.request
            return search.beams is None, request.priority, self._turns.get(request.client, 0)

        self.waiting.sort(key=turn)  # stable: who came first stays first

    def _book_turn(self, client: str) -> None:
        """A search of this client begins. Clients of whom nothing is here are forgotten."""
        self.num_begun += 1
        here = {search.request.client for search in self.waiting}
        self._turns = {name: turn for name, turn in self._turns.items() if name in here}
        self._turns[client] = self.num_begun

    def holds(self, key: str) -> bool:
        return any(search.request.key == key for search in self.waiting)

    def end(self, is_over: Callable[[EngineRequest], bool], reason: EndReason) -> list[Delta]:
        """Ends searches where they are."""
        return [delta for search in self._take_out(is_over) for delta in search.end(reason)]

    def end_late(self, is_late: Callable[[EngineRequest], bool], reason: InternVLError) -> list[Delta]:
        """Ends searches whose time is over."""
        return [delta for search in self._take_out(is_late) for delta in search.end_late(reason)]

    def _take_out(self, is_over: Callable[[EngineRequest], bool]) -> list[Search]:
        ended = [search for search in self.waiting if is_over(search.request)]
        self.waiting = [search for search in self.waiting if search not in ended]
        self._sort()
        return ended

    def missing_images(self, known: Callable[[list[Wanted]], Mapping[bytes, Tensor]]) -> list[Wanted]:
        """Pictures that the first search waits for; `known` is asked once for what is there already."""
        if not self.waiting:
            return []
        search = self.waiting[0]
        if not search.has_asked:
            search.has_asked = True
            search.vision.update(known(search.missing_images()))
        return search.missing_images()

    def step(self, found: Mapping[bytes, Tensor]) -> list[Delta]:
        """Goes on with the first search, if its pictures are among those found by now."""
        if not self.waiting:
            return []
        search = self.waiting[0]
        search.vision.update(found)
        if search.missing_images():
            return []
        if search.beams is None:
            self._book_turn(search.request.client)
        try:
            is_done = search.step(self.models[search.request.adapter or ""], self.chunk)
        except WeightsError as error:
            self._remove(search)
            return search.end("error", error)
        if not is_done:
            return []
        self._remove(search)
        return search.deltas()

    def _remove(self, search: Search) -> None:
        self.waiting.remove(search)
        self._sort()
