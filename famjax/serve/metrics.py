"""Metrics of the server: counters and histograms, in the text format of Prometheus."""

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TypeAlias

# Maps names of metrics to (help text, value).
Values: TypeAlias = Mapping[str, tuple[str, float]]

# Upper bounds of the histograms' buckets, in seconds.
BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Histogram:
    """A cumulative histogram of seconds: for each of `BOUNDS`, the number of observations that are at most that, and
    the number and sum of all of them."""

    def __init__(self) -> None:
        self.below = [0] * len(BOUNDS)
        self.count, self.sum = 0, 0.0

    def observe(self, seconds: float) -> None:
        """Adds an observation."""
        self.count, self.sum = self.count + 1, self.sum + seconds
        for i, bound in enumerate(BOUNDS):
            self.below[i] += seconds <= bound


class Metrics:
    """Metrics of requests. The engine has counters of its own, which are given to `text`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._first_token, self._whole = Histogram(), Histogram()

    def request(self, route: str, status: int, seconds: float) -> None:
        """Counts a request that took `seconds`. `route` must be one of the app's routes, never text from the client."""
        with self._lock:
            self._requests[route, status] += 1
            if route in ("/v1/completions", "/v1/chat/completions") and status == 200:
                self._whole.observe(seconds)

    def first_token(self, seconds: float) -> None:
        """Records the seconds from a request to its first token."""
        with self._lock:
            self._first_token.observe(seconds)

    def text(self, counters: Values, gauges: Values) -> str:
        """Returns all metrics in the text format: those of requests, and the given counters and gauges."""
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
