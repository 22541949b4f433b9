"""This package: the model alone, and its engine for many requests.

Shape letters: N tiles.
"""

from __future__ import annotations

import time
from typing import Any

import torch

import internvl
from internvl.api.chat import ChatModel
from internvl.api.engine import make_engine
from internvl.engine.engine import Engine
from internvl.engine.request import EngineImage, EngineRequest
from internvl.engine.settings import EngineSettings
from internvl.generation.generate import Batch
from internvl.generation.prompt import Prompt
from runtimes.files import Files
from runtimes.workload import normalise

Outcome = tuple[float, Any, dict[str, float]]


class Side:
    def __init__(self, files: Files, variant: str, threads: int) -> None:
        """`variant` is a scheme to pack with while loading, the name of a packed copy, or nothing."""
        torch.set_num_threads(threads)
        if variant.startswith("internvl-"):
            model = internvl.load(files.path(variant))
        else:
            model = internvl.load(files.path("model"), quantize=variant or None)
        assert isinstance(model, ChatModel)
        self.model, self.work = model, files.workload()
        self._engine: Engine | None = None

    @torch.inference_mode()
    def vision(self, tiles: int, turn: int) -> Outcome:
        """`tiles` tiles to vision tokens."""
        tiles_N3HW = torch.from_numpy(self.work.tiles(tiles, seed=turn))
        start = time.perf_counter()
        tokens = self.model.vlm.encode_tiles(tiles_N3HW)
        return time.perf_counter() - start, tokens.numpy(), {}

    @torch.inference_mode()
    def prefill(self, tokens: int, turn: int) -> Outcome:
        """A prompt of text to the scores of the first new token."""
        batch = self._batch(tokens, 1)
        start = time.perf_counter()
        logits = batch._logits([0])  # the scores themselves are to be compared
        return time.perf_counter() - start, logits[0].numpy(), {}

    def decode(self, tokens: int, new: int, turn: int) -> Outcome:
        """`new` tokens after the first one."""
        batch = self._batch(tokens, new + 1)
        batch.step()
        start = time.perf_counter()
        while batch.live:
            batch.step()
        return time.perf_counter() - start, batch.answers[0].ids, {}

    def request(self, new: int, turn: int) -> Outcome:
        """A picture as pixels and a question, to an answer."""
        pixels, ids = self.work.pixels(turn), self.work.picture_ids()
        start = time.perf_counter()
        tiles_N3HW = torch.from_numpy(normalise(pixels))
        answer = self.model.generate(ids, tiles_N3HW, max_new_tokens=new, stop_ids=())
        return time.perf_counter() - start, answer, {}

    def requests(self, count: int, new: int, turn: int) -> Outcome:
        """Pictures and questions that come at once."""
        asked = [self._ask(f"{turn}.{number}", new, turn * 1000 + number) for number in range(count)]
        start = time.perf_counter()
        answers = self._answers(asked)
        return time.perf_counter() - start, [answers[one.key] for one in asked], {}

    def again(self, turn: int) -> Outcome:
        """Seconds to the first token of a second question about a picture, beside those of the first."""
        first, _, _ = self._first_token(self._ask(f"{turn}.first", 1, turn))
        seconds, ids, _ = self._first_token(self._ask(f"{turn}.again", 1, turn, question=1))
        return seconds, ids, {"first question": first, "of the first question": seconds / first}

    def second_round(self, new: int, turn: int) -> Outcome:
        """Seconds to the first token of a second round, which begins with the first and its answer."""
        asked = self._ask(f"{turn}.round", new, turn)
        first, answer, _ = self._first_token(asked)
        ids = [*asked.ids, *answer, *self.work.break_ids, *self.work.questions[1]]
        seconds, ids, _ = self._first_token(self._ask(f"{turn}.next", 1, turn, ids=ids))
        return seconds, ids, {"first round": first, "of the first round": seconds / first}

    def pictures(self, tiles: int, distinct: int, turn: int) -> Outcome:
        """Seconds to the first token behind so many tiles, of which some are equal."""
        tiles_N3HW = torch.from_numpy(self.work.tiles(tiles, distinct, turn))
        ids, key = self.work.picture_ids(tiles), f"{turn}.{tiles}.{distinct}"
        image = EngineImage(key=key.encode(), tiles_N3HW=tiles_N3HW)
        sampling = self.model.sampling(max_new_tokens=1, stop_ids=())
        return self._first_token(EngineRequest(key=key, ids=tuple(ids), sampling=sampling, images=(image,)))

    def _batch(self, tokens: int, new: int) -> Batch:
        llm = self.model.vlm.llm
        with torch.inference_mode():
            x_TD = llm.embed(torch.tensor(self.work.text_ids(tokens)))
        return Batch(llm, [Prompt(x_TD, self.model.sampling(max_new_tokens=new, stop_ids=()))])

    def _ask(
        self, key: str, new: int, seed: int, question: int = 0, ids: list[int] | None = None
    ) -> EngineRequest:
        image = EngineImage(
            key=str(seed).encode(), tiles_N3HW=torch.from_numpy(normalise(self.work.pixels(seed)))
        )
        sampling = self.model.sampling(max_new_tokens=new, stop_ids=())
        ids = ids or self.work.picture_ids(question=question)
        return EngineRequest(key=key, ids=tuple(ids), sampling=sampling, images=(image,))

    @property
    def engine(self) -> Engine:
        self._engine = self._engine or make_engine(self.model, EngineSettings())
        return self._engine

    def _first_token(self, asked: EngineRequest) -> Outcome:
        start = time.perf_counter()
        self.engine.submit(asked)
        ids, seconds = list[int](), 0.0
        while self.engine.has_work:
            ids += [delta.token.id for delta in self.engine.step() if delta.token]
            if ids and not seconds:
                seconds = time.perf_counter() - start
        return seconds, ids, {}

    def _answers(self, asked: list[EngineRequest]) -> dict[str, list[int]]:
        for one in asked:
            self.engine.submit(one)
        answers: dict[str, list[int]] = {one.key: [] for one in asked}
        while self.engine.has_work:
            for delta in self.engine.step():
                if delta.token:
                    answers[delta.key].append(delta.token.id)
        return answers
