"""What a server counts, in the names and shapes of vLLM's metrics, and what is special to pictures.

Knows Prometheus; reads the backend's own numbers when it is asked.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from internvl.engine.request import Delta
from internvl.engine.settings import EngineStats
from internvl.serving.admission import Admission
from internvl.serving.backend import Backend

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0)


class _Numbers(Collector):
    """Those the engine keeps itself."""

    def __init__(self, backend: Backend, admission: Admission, model: str) -> None:
        self.backend, self.admission, self.model = backend, admission, model

    def collect(self) -> Iterable[Metric]:
        stats = self.backend.stats()
        gauges, counters = gauges_of(stats), counters_of(stats)
        counters["engine_restarts"] = "Times the engine was started again.", self.backend.num_restarts
        counters["admission_rejections"] = "Requests sent away with 429.", self.admission.num_refused
        for name, (help, value) in gauges.items():
            gauge = GaugeMetricFamily(f"internvl:{name}", help, labels=["model_name"])
            gauge.add_metric([self.model], value)
            yield gauge
        for name, (help, value) in counters.items():
            counter = CounterMetricFamily(f"internvl:{name}", help, labels=["model_name"])
            counter.add_metric([self.model], value)
            yield counter


def gauges_of(stats: EngineStats) -> dict[str, tuple[str, float]]:
    """What is going on: help and value by name."""
    return {
        "num_requests_running": ("Answers being computed.", stats.running),
        "num_requests_waiting": ("Answers waiting to be computed.", stats.waiting),
        "kv_cache_usage_perc": (
            "Pages of keys and values in use; 1 is all.",
            stats.pages_used / stats.pages_total,
        ),
        "vision_tiles_waiting": ("Tiles waiting for the vision tower.", stats.tiles_waiting),
    }


def counters_of(stats: EngineStats) -> dict[str, tuple[str, float]]:
    """Sums so far: help and value by name."""
    return {
        "prefix_cache_queries": ("Prompt tokens asked of the prefix cache.", stats.prefix_queries),
        "prefix_cache_hits": ("Prompt tokens found in the prefix cache.", stats.prefix_hits),
        "num_preemptions": ("Answers whose pages were taken for a while.", stats.preemptions),
        "kv_page_evictions": ("Pages of ended answers given to others.", stats.evictions),
        "spec_decode_num_draft_tokens": ("Tokens guessed.", stats.drafts),
        "spec_decode_num_accepted_tokens": ("Tokens guessed right.", stats.drafts_right),
        "mm_cache_queries": ("Pictures asked of the vision cache.", stats.vision_queries),
        "mm_cache_hits": ("Pictures found in the vision cache.", stats.vision_hits),
        "mm_cache_disk_hits": ("Pictures found in the vision cache's folder.", stats.vision_disk_hits),
        "vision_tiles": ("Tiles that went through the vision tower.", stats.tiles),
        "vision_seconds": ("Seconds spent in the vision tower.", stats.vit_seconds),
        "decoder_seconds": ("Seconds spent in the decoder.", stats.llm_seconds),
        "engine_steps": ("Steps of the engine.", stats.steps),
    }


class Metrics:
    """The numbers of one server, in a registry of their own."""

    def __init__(self, model: str) -> None:
        self.registry = CollectorRegistry()
        self.model = model
        self._last: dict[str, float] = {}
        self.first_token = self._histogram("time_to_first_token_seconds", "From arrival to the first token.")
        self.inter_token = self._histogram("inter_token_latency_seconds", "Between two steps of a request.")
        self.whole = self._histogram("e2e_request_latency_seconds", "From arrival to the last token.")
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts.")
        self.new_tokens = self._counter("generation_tokens", "Tokens of answers.")
        self.image_tokens = self._counter("image_tokens", "Vision tokens of prompts.")
        self.success = self._counter("request_success", "Answers that ended.", "finished_reason")
        self.rejected_media = self._counter("rejected_media", "Media that were refused.", "reason")

    def watch(self, backend: Backend, admission: Admission) -> None:
        """Also report what these two keep."""
        self.registry.register(_Numbers(backend, admission, self.model))

    def observe(self, delta: Delta, arrived: float) -> None:
        """Book one delta of a request that arrived then, on the monotonic clock."""
        now = time.monotonic()
        before = self._last.get(delta.key)
        if before is None:
            self.first_token.labels(self.model).observe(now - arrived)
        elif now > before:
            self.inter_token.labels(self.model).observe(now - before)
        self._last[delta.key] = now
        if delta.finish_reason is not None:
            self.success.labels(self.model, delta.finish_reason).inc()
        if delta.usage is not None:
            self.whole.labels(self.model).observe(now - arrived)
            self.prompt_tokens.labels(self.model).inc(delta.usage.prompt_tokens)
            self.new_tokens.labels(self.model).inc(delta.usage.completion_tokens)
            self.image_tokens.labels(self.model).inc(delta.usage.image_tokens)

    def count_refused(self, code: str) -> None:
        """A medium was refused for this reason."""
        self.rejected_media.labels(self.model, code).inc()

    def forget(self, key: str) -> None:
        """A request is over, however it ended."""
        self._last.pop(key, None)

    def text(self) -> bytes:
        """Everything in Prometheus' format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, help: str, *labels: str) -> Counter:
        return Counter(f"internvl:{name}", help, ["model_name", *labels], registry=self.registry)

    def _histogram(self, name: str, help: str) -> Histogram:
        return Histogram(f"internvl:{name}", help, ["model_name"], registry=self.registry, buckets=SECONDS)
