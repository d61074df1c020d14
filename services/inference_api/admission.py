"""Refusing at once what could not be answered in time, so that the rest is.

A worker whose queue is long takes everything that waits for it, keeps as much as it can serve within `max_wait`, and
refuses what is beyond that: a refusal costs a fraction of an inference, and whoever gets one at once can go elsewhere.
The number is Little's law: what may wait, divided by what a request takes (Google SRE, "Handling Overload").
"""

import re
import time
from collections.abc import Mapping

# A queue is never shorter than this, whatever a request takes.
FLOOR = 2
# What is in the background may fill this part of the queue.
BACKGROUND_PART = 0.5
# RFC 9218: 0 to 7, 3 unless said otherwise. From here on somebody has time.
BACKGROUND_URGENCY = 5
STAMP = re.compile(r"t=([0-9]{1,12}(?:\.[0-9]{1,6})?)")
URGENCY = re.compile(r"(?:^|[, ])u=([0-7])")
# Of the newest request in the average of what one takes.
WEIGHT = 0.05
EXEMPT = ("/v2/health/", "/metrics")


class Admission:
    """Whether a worker has room for a request that arrives while others wait. Times are in seconds."""

    def __init__(self, max_wait: float) -> None:
        self.max_wait = max_wait
        self._seconds = 1e-3

    def served(self, seconds: float) -> None:
        self._seconds += WEIGHT * (seconds - self._seconds)

    def is_late(self, age: float, busy: float) -> bool:
        """Whether the queue is long: a request has waited for `age`, and not because nobody was there to serve it.

        Half of the time has to be left, or what is taken now will be too late.
        """
        return min(age, busy) > self.max_wait / 2

    def has_room(self, waiting: int, background: bool, age: float) -> bool:
        """Whether one that has waited for `age` elsewhere may wait here, behind `waiting` others."""
        if age > self.max_wait:
            return False
        room = max(FLOOR, (self.max_wait - age) / self._seconds)
        return waiting < (room * BACKGROUND_PART if background else room)


def age(environ: Mapping[str, str]) -> float:
    """Seconds since the request arrived at NGINX, which stamps it: `X-Request-Start: t=<seconds of the day>`."""
    stamp = environ.get("HTTP_X_REQUEST_START", "")
    found = STAMP.fullmatch(stamp)
    return max(0.0, time.time() - float(found[1])) if found else 0.0


def is_background(environ: Mapping[str, str]) -> bool:
    priority = environ.get("HTTP_PRIORITY")
    found = URGENCY.search(priority) if priority else None
    return found is not None and int(found[1]) >= BACKGROUND_URGENCY


def is_exempt(environ: Mapping[str, str]) -> bool:
    """Who asks whether this server is well is to be told so when it is not."""
    return environ["PATH_INFO"].startswith(EXEMPT)
