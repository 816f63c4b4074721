"""Counts and times of the server, in the text format of Prometheus."""

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TypeAlias

# By name: what it is, and its value.
Values: TypeAlias = Mapping[str, tuple[str, float]]

# Upper bounds of seconds, of the histograms.
BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Histogram:
    """How many observations lie below each of `BOUNDS`."""

    def __init__(self) -> None:
        self.below = [0] * len(BOUNDS)
        self.count, self.sum = 0, 0.0

    def observe(self, seconds: float) -> None:
        """Counts one."""
        self.count, self.sum = self.count + 1, self.sum + seconds
        for i, bound in enumerate(BOUNDS):
            self.below[i] += seconds <= bound


class Metrics:
    """What the app counts itself; the engine's counts are handed to `text`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._first_token, self._whole = Histogram(), Histogram()

    def request(self, route: str, status: int, seconds: float) -> None:
        """A request has been answered. `route` is one of the app's own, never text of the client."""
        with self._lock:
            self._requests[route, status] += 1
            if route in ("/v1/completions", "/v1/chat/completions") and status == 200:
                self._whole.observe(seconds)

    def first_token(self, seconds: float) -> None:
        """An answer has begun, so long after its request came."""
        with self._lock:
            self._first_token.observe(seconds)

    def text(self, counters: Values, gauges: Values) -> str:
        """All of it: own counts, and those by name: (what it is, value)."""
        lines: list[str] = []
        with self._lock:
            lines += _head("requests_total", "counter", "Requests answered, by route and status.")
            for (route, status), count in sorted(self._requests.items()):
                lines.append(f'famjax_requests_total{{route="{route}",status="{status}"}} {count}')
            lines += _histogram("time_to_first_token_seconds", "From a request to its first token.", self._first_token)
            lines += _histogram("request_seconds", "From a request to the end of its answer.", self._whole)
        for kind, values in (("counter", counters), ("gauge", gauges)):
            for name, (what, value) in values.items():
                lines += [*_head(name, kind, what), f"famjax_{name} {value:.15g}"]
        return "\n".join(lines) + "\n"


def _head(name: str, kind: str, what: str) -> list[str]:
    return [f"# HELP famjax_{name} {what}", f"# TYPE famjax_{name} {kind}"]


def _histogram(name: str, what: str, of: Histogram) -> Iterator[str]:
    yield from _head(name, "histogram", what)
    for bound, below in zip(BOUNDS, of.below, strict=True):
        yield f'famjax_{name}_bucket{{le="{bound:g}"}} {below}'
    yield f'famjax_{name}_bucket{{le="+Inf"}} {of.count}'
    yield f"famjax_{name}_sum {of.sum:g}"
    yield f"famjax_{name}_count {of.count}"
