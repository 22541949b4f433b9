"""Many requests at once: continuous batching over pages, one `step` at a time.

    engine = Engine(vlm, decode=tokenizer.decode, slot_id=context_id)
    engine.submit(EngineRequest(key="a", ids=ids, sampling=Sampling()))
    while engine.has_work:
        for delta in engine.step(): ...

Each answer is the one `generation.generate` gives its prompt. What a step costs is bounded, so nobody
waits long for anybody's prefill or pictures. Not safe from several threads: see `async_engine`. Knows ids;
text only through `decode`. Shape letters: R rows, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby

from torch import Tensor

from internvl.engine.assembly import make_cache, make_limits, make_vision
from internvl.engine.constraint import Vocabulary
from internvl.engine.intake import Intake, Language
from internvl.engine.job import Job, Task
from internvl.engine.pages import PagePool
from internvl.engine.planner import Plan, measure
from internvl.engine.request import Delta, EndReason, EngineRequest
from internvl.engine.runner import Runner
from internvl.engine.scheduler import Row, Scheduler, Work
from internvl.engine.searches import Searches
from internvl.engine.settings import EngineSettings, EngineStats
from internvl.engine.towers import find_towers, fingerprint
from internvl.engine.vision_cache import VisionCache
from internvl.errors import DeadlineError, InputError, InternVLError, QueueFullError, WeightsError
from internvl.generation import scores
from internvl.generation.stream import Decode
from internvl.models.vlm import VLM


class Engine:
    """Requests in, pieces of their answers out."""

    def __init__(
        self,
        vlm: VLM,
        *,
        decode: Decode | None = None,
        slot_id: int | None = None,
        seen_ids: Sequence[int] = (),
        vocabulary: Vocabulary | None = None,
        settings: EngineSettings | None = None,
        adapters: Mapping[str, VLM] | None = None,
        vision_cache: VisionCache | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`decode`, `slot_id`, `seen_ids` and `vocabulary`: see `intake.Language`. `adapters` are models by
        name that share their weights with `vlm` but for what they adapt (`checkpoints.adapters`).
        `vision_cache` may be one that others use too. `clock` gives the seconds that deadlines are in.
        """
        self.clock = clock
        self.settings = settings = settings or EngineSettings()
        models = {"": vlm, **(adapters or {})}
        towers = find_towers(models)
        sizes = measure(settings, vlm.config.text, vlm.llm.embed.weight.element_size())
        language = Language(decode=decode, slot_id=slot_id, seen_ids=tuple(seen_ids), vocabulary=vocabulary)
        roots = {name: fingerprint(models[name]) if name else b"" for name in set(towers.values())}
        self.intake = Intake(vlm.config, settings, sizes, language, towers, roots)
        self.pool = PagePool(sizes.num_pages)
        self.scheduler = Scheduler(self.pool, make_limits(settings))
        cache = make_cache(vlm, settings, sizes)
        self.runners = {name: Runner(model, cache) for name, model in models.items()}
        self.vision = make_vision(models, towers, settings, vision_cache)
        self.searches = Searches(models, settings.fixed_chunk or settings.max_step_tokens)
        self.jobs: dict[int, Job] = {}
        self.outbox: list[Delta] = []
        self.totals = dict.fromkeys(("numbers", "requests", "prompt", "new", "queries", "hits"), 0)
        self.totals |= {"steps": 0, "drafts": 0, "right": 0}

    @property
    def has_work(self) -> bool:
        return bool(self.jobs or self.outbox or self.searches.waiting)

    def warm_up(self) -> None:
        """Makes ready what the first request of its kind would wait for, and others with it."""
        self.intake.warm_up()

    def plan(self, request: EngineRequest) -> Plan:
        """What the request will take. Raises as `submit` does, but for what is there now; changes nothing."""
        return self.intake.plan(request)

    def submit(self, request: EngineRequest) -> None:
        """Queues a request.

        Raises:
            InputError: it cannot be answered, or never by this engine (`planner.plan_request`); its key is
                in use; it has stop strings and the engine no `decode`; or its constraint is not valid.
            UnknownNameError: there is no such adapter.
            QueueFullError: too many requests or tiles are waiting.
        """
        plan = self.plan(request)
        if self.holds(request.key):
            raise InputError(f"a request {request.key!r} is there already: keys must be unique")
        self._check_queue(plan)
        self.totals["requests"] += 1
        if request.sampling.num_beams > 1:
            self.searches.add(self.intake.search(request))
            return
        for job in self.intake.jobs(request, self.totals["numbers"]):
            self.jobs[job.row.number] = job
            self.scheduler.add(job.row)
        self.totals["numbers"] += request.n

    def cancel(self, key: str) -> None:
        """Ends a request where it is; the next step reports it. One that is not there has ended already."""
        self._end_requests(lambda request: request.key == key, "cancelled")

    def holds(self, key: str) -> bool:
        """Whether a request of this key has pieces to come."""
        is_open = any(job.request.key == key for job in self.jobs.values())
        return is_open or self.searches.holds(key) or any(delta.key == key for delta in self.outbox)

    def step(self) -> list[Delta]:
        """Admits, encodes some tiles, runs one batch; returns what became known, and who ended."""
        self._end_late(self.clock())
        for row in self.scheduler.admit():
            self._book_admission(row)
        self._encode()
        for job in self._running():
            job.guess()
        for name, tasks in self._passes(self.scheduler.plan()):
            self._run(self.runners[name], tasks)
        self.totals["steps"] += 1
        deltas, self.outbox = self.outbox, []
        return deltas

    def stats(self) -> EngineStats:
        """What is going on, and sums so far."""
        totals = self.totals
        return EngineStats(
            running=len(self.scheduler.running),
            waiting=len(self.scheduler.waiting) + len(self.searches.waiting),
            pages_used=self.pool.num_used,
            pages_idle=self.pool.num_idle,
            pages_total=self.pool.num_pages,
            steps=totals["steps"],
            requests=totals["requests"],
            prompt_tokens=totals["prompt"],
            new_tokens=totals["new"],
            prefix_queries=totals["queries"],
            prefix_hits=totals["hits"],
            drafts=totals["drafts"],
            drafts_right=totals["right"],
            preemptions=self.scheduler.num_preempted,
            evictions=self.pool.num_evicted,
            vision_queries=self.vision.num_queries,
            vision_hits=self.vision.num_hits,
            vision_disk_hits=self.vision.num_disk_hits,
            tiles=self.vision.num_tiles,
            tiles_waiting=self.vision.num_waiting,
            vit_seconds=self.vision.seconds,
            llm_seconds=sum(runner.seconds for runner in self.runners.values()),
        )

    def check(self) -> None:
        """Asserts that the engine's books are in order; for tests."""
        self.scheduler.check()
        rows = {row.number for row in (*self.scheduler.running, *self.scheduler.waiting)}
        assert rows == self.jobs.keys()
        for job in self.jobs.values():
            assert len(job.ids) == job.row.num_tokens
            assert len(job.chain.keys) == len(job.ids) // self.settings.page_size

    def _check_queue(self, plan: Plan) -> None:
        requests = [self.jobs[row.number].request for row in self.scheduler.waiting]
        requests += [search.request for search in self.searches.waiting]
        waiting = {request.key: request for request in requests}
        num_tiles = sum(len(image.tiles_N3HW) for one in waiting.values() for image in one.images)
        if len(waiting) >= self.settings.max_waiting:
            raise QueueFullError(f"{len(waiting)} requests are waiting, which is the limit: come back later")
        if waiting and num_tiles + plan.tiles > self.settings.max_waiting_tiles:
            raise QueueFullError(
                f"{num_tiles} tiles are waiting; {plan.tiles} more exceed the limit of "
                f"{self.settings.max_waiting_tiles}: come back later"
            )

    def _running(self) -> list[Job]:
        return [self.jobs[row.number] for row in self.scheduler.running]

    def _book_admission(self, row: Row) -> None:
        job = self.jobs[row.number]
        self.totals["queries"] += row.num_tokens
        self.totals["hits"] += row.num_computed
        job.vision.update(self.vision.known(job.missing_images()))

    def _encode(self) -> None:
        """Some tiles of the pictures that the search and running rows come to; how far these can run then."""
        jobs = self._running()
        wanted = self.searches.missing_images(self.vision.known)
        wanted += [one for job in jobs for one in job.missing_images()]
        done = self.vision.step(wanted, self.settings.max_step_tiles)
        self.outbox += self.searches.step(done)
        for job in jobs:
            keys = [one.image.key for one in job.missing_images()]
            job.vision.update((key, done[key]) for key in keys if key in done)
            job.update_ready()

    def _passes(self, works: Sequence[Work]) -> Iterator[tuple[str, list[Task]]]:
        """Work that goes through a model together: that of one adapter, or of one row where answers must not
        depend on what else runs."""
        tasks = [self._task(work) for work in works]

        def group(task: Task) -> tuple[str, int]:
            number = task.work.row.number if self.settings.is_batch_invariant else 0
            return task.job.request.adapter or "", number

        for (name, _), members in groupby(sorted(tasks, key=group), group):
            yield name, list(members)

    def _task(self, work: Work) -> Task:
        job = self.jobs[work.row.number]
        known = job.ids[work.start : work.start + work.size - work.num_drafts]
        return Task(job, work, known + job.drafts[: work.num_drafts])

    def _run(self, runner: Runner, tasks: Sequence[Task]) -> None:
        hidden = runner.run(tasks)
        choosing = [(task, states) for task, states in zip(tasks, hidden, strict=True) if task.num_scores]
        for task, states_TD in zip(tasks, hidden, strict=True):
            if task.job.wants_prompt_logprobs:
                self._report_prompt(runner, task, states_TD)
            if not task.num_scores:
                self.scheduler.commit(task.work, 0)
        logits = runner.logits(choosing) if choosing else []
        for (task, _), logits_RV in zip(choosing, logits, strict=True):
            try:
                self._advance(task, logits_RV)
            except (WeightsError, InputError) as error:
                self._end([task.job], "error", error)

    def _advance(self, task: Task, logits_RV: Tensor) -> None:
        """Chooses from the scores behind the known tokens, and behind guesses as long as they are right."""
        job, drafts = task.job, task.ids[len(task.ids) - task.work.num_drafts :]
        is_first = not job.answer.ids
        num_chosen = 0
        for logits_V, draft in zip(logits_RV, [*drafts, None], strict=True):
            token = job.accept(*job.choose(logits_V))
            self.outbox.append(job.delta(token))
            num_chosen += 1
            if token.finish_reason or token.id != draft:
                break
        self.scheduler.commit(task.work, num_chosen)
        self.totals["prompt"] += len(job.request.ids) if is_first else 0
        self.totals["new"] += num_chosen
        self.totals["drafts"] += len(drafts)
        self.totals["right"] += num_chosen - 1
        job.forget_vision()
        if job.answer.finish_reason:
            self._drop(job)

    def _report_prompt(self, runner: Runner, task: Task, states_TD: Tensor) -> None:
        """Log-probabilities of the prompt tokens that follow a piece of the prompt."""
        job, count = task.job, task.job.request.prompt_logprobs or 0
        followers = job.request.ids[task.work.start + 1 : task.work.start + 1 + task.work.size]
        known = max(0, len(job.prompt_logprobs) - 1 - task.work.start)  # computed anew after preemption
        if known < len(followers):
            positions = runner.prompt_scores(states_TD[known : len(followers)])
            for id, scores_V in zip(followers[known:], positions, strict=True):
                job.prompt_logprobs.append(scores.report(scores_V.float(), id, count))

    def _end(self, jobs: Sequence[Job], reason: EndReason, error: InternVLError | None = None) -> None:
        for job in jobs:
            self.outbox.append(job.end(reason, error))
            self._drop(job)

    def _end_late(self, now: float) -> None:
        """Ends requests whose time is over: with what is written, or where nothing is with an error."""

        def is_late(request: EngineRequest) -> bool:
            return request.deadline is not None and request.deadline <= now

        reason = DeadlineError(
            "the request's time was over before its answer had begun: allow it more, or come back when fewer "
            f"than {len(self.scheduler.waiting) + len(self.searches.waiting)} answers are waiting"
        )
        self.outbox += self.searches.end_late(is_late, reason)
        late = [job for job in self.jobs.values() if is_late(job.request)]
        begun = {job.request.key for job in late if job.answer.ids or job.tally.new_tokens}
        self._end([job for job in late if job.request.key in begun], "deadline")
        self._end([job for job in late if job.request.key not in begun], "error", reason)

    def _end_requests(self, is_over: Callable[[EngineRequest], bool], reason: EndReason) -> None:
        self.outbox += self.searches.end(is_over, reason)
        self._end([job for job in self.jobs.values() if is_over(job.request)], reason)

    def _drop(self, job: Job) -> None:
        self.scheduler.remove(job.row)
        del self.jobs[job.row.number]
