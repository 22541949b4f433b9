"""From a request to what the engine runs: checked, measured, and one job for each answer.

Knows the engine's sizes and names; nothing of what is running.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from threading import Lock

from internvl.config import ChatConfig
from internvl.engine.constraint import Form, FormMaker, Vocabulary, can_make_forms
from internvl.engine.job import Job, Tally
from internvl.engine.page_keys import KeyChain
from internvl.engine.planner import Plan, Sizes, find_spans, plan_request
from internvl.engine.request import EngineImage, EngineRequest
from internvl.engine.scheduler import Row
from internvl.engine.searches import Search
from internvl.engine.settings import EngineSettings
from internvl.engine.vision_encoder import Wanted
from internvl.errors import InputError, UnknownNameError
from internvl.generation.answer import Answer
from internvl.generation.prompt import check_ids
from internvl.generation.sampling import Sampling
from internvl.generation.stream import Decode
from internvl.models.rope import rotation_regime


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Language:
    """What the engine knows of text: `decode` for pieces of answers and stop strings, the id of slots, the
    ids that count as seen for the repetition penalty (as in `generation.prompt`), and the vocabulary for
    answers of a given form."""

    decode: Decode | None = None
    slot_id: int | None = None
    seen_ids: Sequence[int] = ()
    vocabulary: Vocabulary | None = None


class Intake:
    """`towers` tells for each adapter, and for none (""), whose tower sees its pictures; `roots` what the
    keys of pictures in that tower begin with."""

    def __init__(
        self,
        config: ChatConfig,
        settings: EngineSettings,
        sizes: Sizes,
        language: Language,
        towers: Mapping[str, str],
        roots: Mapping[str, bytes],
    ) -> None:
        check_ids_of(language, config)
        self.config, self.settings, self.sizes, self.language = config, settings, sizes, language
        self.towers, self.roots = dict(towers), dict(roots)
        self._forms: FormMaker | None = None
        self._lock = Lock()

    def warm_up(self) -> None:
        """Reads the vocabulary for answers of a given form, where these can be: of a large one that takes
        long."""
        if self.language.vocabulary is not None and can_make_forms():
            self._form_maker(self.language.vocabulary)

    def plan(self, request: EngineRequest) -> Plan:
        """What the request will take; raises for what cannot be, see `Engine.submit`."""
        if (request.adapter or "") not in self.towers:
            names = ", ".join(sorted(filter(None, self.towers))) or "none"
            raise UnknownNameError(f"no adapter {request.adapter!r} here; there is {names}")
        if request.sampling.num_beams == 1:
            Answer(request.sampling, (), self.language.decode)  # refuses stop strings that nobody can read
        self._form(request)
        return plan_request(request, self._slots(request), self.config, self.settings, self.sizes)

    def search(self, request: EngineRequest) -> Search:
        """The beam search of a request that `plan` has passed."""
        images = self._images(request)
        spans = find_spans(self._slots(request), images, self.config.tokens_per_tile)
        tower = self.towers[request.adapter or ""]
        wanted = [Wanted(image, tower) for image in images]
        return Search(request, wanted, spans, self.language.seen_ids, self.language.decode)

    def jobs(self, request: EngineRequest, first: int) -> list[Job]:
        """The answers of a request that `plan` has passed, numbered from `first`."""
        adapter = request.adapter or ""
        tower, length, images = self.towers[adapter], len(request.ids), self._images(request)
        spans = find_spans(self._slots(request), images, self.config.tokens_per_tile)
        jobs, tally = [], Tally(request.n)
        for index in range(request.n):
            chain = KeyChain(self.settings.page_size, adapter.encode(), spans, self._regime(length))
            chain.extend(request.ids)
            row = Row(
                number=first + index,
                num_tokens=length,
                final_tokens=length + request.sampling.max_new_tokens,
                priority=request.priority,
                client=request.client,
                keys=chain.keys,
                shares=self.settings.shares_prefixes and request.prompt_logprobs is None,
            )
            job = Job(
                request,
                index,
                row,
                chain,
                tally=tally,
                images=images,
                tower=tower,
                seen_ids=self.language.seen_ids,
                decode=self.language.decode,
                form=self._form(request),
                num_drafts=self.settings.num_drafts,
            )
            jobs.append(job)
        return jobs

    def _images(self, request: EngineRequest) -> list[EngineImage]:
        """The pictures with the keys they have in the tower that sees them."""
        root = self.roots[self.towers[request.adapter or ""]]
        return [replace(image, key=root + image.key) for image in request.images]

    def _slots(self, request: EngineRequest) -> Sequence[int]:
        if request.slots is not None or not request.images:
            return request.slots or ()
        return [place for place, id in enumerate(request.ids) if id == self.language.slot_id]

    def _regime(self, prompt_length: int) -> Callable[[int], int] | None:
        """How positions of a sequence rotate, where that depends on its length."""
        text = self.config.text
        if text.rope.scaling not in ("dynamic", "longrope"):
            return None
        return lambda position: rotation_regime(text, max(prompt_length, position + 1))

    def _form(self, request: EngineRequest) -> Form | None:
        if request.constraint is None:
            return None
        vocabulary = self.language.vocabulary
        if vocabulary is None:
            raise InputError("answers of a given form need the engine's vocabulary: pass vocabulary=")
        if vocabulary.end_id not in request.sampling.stop_ids:
            raise InputError(
                f"an answer of a given form ends with id {vocabulary.end_id}: put it into stop_ids, which "
                f"are {request.sampling.stop_ids}"
            )
        return self._form_maker(vocabulary).start(request.constraint)

    def _form_maker(self, vocabulary: Vocabulary) -> FormMaker:
        """Made once, whichever thread comes first."""
        with self._lock:
            if self._forms is None:
                self._forms = FormMaker(vocabulary)
            return self._forms


def check_ids_of(language: Language, config: ChatConfig) -> None:
    """Raises InputError if `seen_ids` are not the model's."""
    check_ids(Sampling(), language.seen_ids, config.text)
