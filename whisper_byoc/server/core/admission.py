"""Which new work is accepted: as much as there are places for, and as pipelines that measure it can do in time."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from whisper_byoc.errors import RequestRefused
from whisper_byoc.server.core.job import Job
from whisper_byoc.server.core.limits import Limits
from whisper_byoc.server.core.pipeline import Pipeline

RETRY_AFTER_SECONDS = 5
LONGEST_RETRY_AFTER_SECONDS = 60
YOUNG_SECONDS = 2.0
"""Until it is this old, a job without a byte neither counts against its client nor makes room for others."""
EMPTY_SHARE = 4
"""One client address may hold one in this many of all places with jobs without a byte."""


class Admission:
    """Counts jobs and seconds of recordings. `jobs` returns all jobs, including those that have ended."""

    def __init__(self, limits: Limits, jobs: Callable[[], Collection[Job]]) -> None:
        self._limits = limits
        self._jobs = jobs
        self._recorded: defaultdict[str, list[Callable[[], float]]] = defaultdict(list)
        """The recordings that each pipeline is working on: the seconds left of each."""

    def free(self, pipeline: Pipeline) -> int:
        """Return how many new live jobs of a pipeline would be accepted."""
        taken = sum(not job.results.ended and job.empty_seconds <= YOUNG_SECONDS for job in self._jobs())
        unread = sum(job.results.ended and not job.fully_read for job in self._jobs())
        places = max(self._limits.jobs - max(taken, unread), 0)
        capacity, live = pipeline.capacity, self.live(pipeline)
        if capacity is None:
            return places
        return min(places, 0 if capacity.late and live else max(self.fits(pipeline) - live, 0))

    def fits(self, pipeline: Pipeline) -> int:
        """Return how many live jobs of a pipeline there may be at once: at least one.

        Otherwise a pipeline that was slow once would never be tried again.
        """
        capacity = pipeline.capacity
        return self._limits.jobs if capacity is None else min(max(capacity.live, 1), self._limits.jobs)

    def live(self, pipeline: Pipeline) -> int:
        """Return how many live jobs a pipeline has."""
        return len(self._live(pipeline))

    def recorded(self, pipeline: Pipeline) -> float:
        """Return how many seconds are left of the recordings that a pipeline is working on."""
        return sum(left() for left in self._recorded[pipeline.name])

    def refusal(self, pipeline: Pipeline, *, recording: bool) -> RequestRefused | None:
        """Return why a new job cannot be accepted now (503); None if it can."""
        open_jobs = [job for job in self._jobs() if not job.results.ended]
        if len(open_jobs) >= self._limits.jobs:
            message = f"all {self._limits.jobs} jobs of this server are taken"
            return RequestRefused(503, message, RETRY_AFTER_SECONDS, reason="jobs")
        live, capacity = self._live(pipeline), pipeline.capacity
        if recording or not live or capacity is None:
            return None
        if len(live) >= (fits := self.fits(pipeline)):
            message = f"pipeline {pipeline.name} has {len(live)} live jobs, and {fits} fit"
        elif capacity.late:
            message = f"live jobs of pipeline {pipeline.name} are late by {capacity.lag:.1f} s"
        else:
            return None
        return RequestRefused(503, message, _until_one_ends(live), reason="capacity")

    def check_share(self, client: str) -> None:
        """Refuse (503) a client whose address holds its share of places with jobs without a byte; "" is no address.

        Only jobs that it still feeds or reads count: the others make room.
        """
        held = (job for job in self._jobs() if (job.has_feed or job.has_reader) and not job.results.ended)
        empty = (job for job in held if job.empty_seconds > YOUNG_SECONDS)
        if client and sum(job.client == client for job in empty) >= self._share:
            message = f"{self._share} jobs from your address have received no bytes; send data, or end them"
            raise RequestRefused(503, message, RETRY_AFTER_SECONDS, reason="jobs_of_address")

    def dispensable(self, pipeline: Pipeline | None = None) -> Job | None:
        """Return an open job, of one pipeline or of any, that should make room for one with something to do.

        It is the oldest job without a byte of the address that has the most of them. Young ones are left alone, unless
        there are more of them than their address's share.
        """
        empty = [
            job
            for job in self._jobs()
            if job.empty_seconds and not job.results.ended and (pipeline is None or pipeline.name == job.info.pipeline)
        ]
        number = Counter(job.client for job in empty)
        old = [job for job in empty if job.empty_seconds > YOUNG_SECONDS or number[job.client] > self._share]
        return max(old, key=lambda job: (number[job.client], job.empty_seconds), default=None)

    @contextmanager
    def recording(self, pipeline: Pipeline, left: Callable[[], float]) -> Iterator[None]:
        """Reserve a pipeline's time for a recording; `left` returns its remaining seconds.

        Raises `RequestRefused` (429) when it would not be done within the limit; one recording is always accepted.
        Recordings are processed side by side, so before this one ends, at most its own length of any longer one is
        done.
        """
        before, capacity = self.recorded(pipeline), pipeline.capacity
        if before and capacity is not None:
            work = left() + sum(min(other(), left()) for other in self._recorded[pipeline.name])
            late = work / capacity.recording_rate - self._limits.recording_seconds
            if late > 0:
                message = f"pipeline {pipeline.name} is at {before:.0f} s of recordings, and does "
                message += f"{capacity.recording_rate:.0f} in a second; send this one of {left():.0f} s later"
                raise RequestRefused(429, message, math.ceil(late), reason="capacity")
        self._recorded[pipeline.name].append(left)
        try:
            yield
        finally:
            self._recorded[pipeline.name].remove(left)

    @property
    def _share(self) -> int:
        return max(self._limits.jobs // EMPTY_SHARE, 1)

    def _live(self, pipeline: Pipeline) -> list[Job]:
        open_jobs = (job for job in self._jobs() if not job.results.ended)
        return [job for job in open_jobs if job.info.pipeline == pipeline.name and not job.info.recording]


def _until_one_ends(jobs: Collection[Job]) -> int:
    """Guess the seconds until one of them ends: on average, each goes on for as long as it already has."""
    seconds = sum(job.age_seconds for job in jobs) / len(jobs) ** 2
    return math.ceil(min(max(seconds, RETRY_AFTER_SECONDS), LONGEST_RETRY_AFTER_SECONDS))
