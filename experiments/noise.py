"""Whether a difference between two arms is more than what the seed does."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

LEVEL = 0.05
RULE = (
    "A difference exceeds the noise where Welch's t-test (two-sided, over the seeds, unequal "
    f"variances) gives p < {LEVEL}. Each pair is tested by itself: of twenty pairs without any "
    "difference, one is expected to pass."
)


class Verdict(NamedTuple):
    """difference: of the means. p: of Welch's test; None where the seeds cannot tell, for `why`."""

    difference: float
    p: float | None
    why: str

    @property
    def exceeds(self) -> bool:
        return self.p is not None and self.p < LEVEL


def compare(ours: Sequence[float], theirs: Sequence[float]) -> Verdict:
    """Mean of ours less mean of theirs, with one value per seed; neither may be empty."""
    difference = statistics.fmean(ours) - statistics.fmean(theirs)
    if min(len(ours), len(theirs)) < 2:
        return Verdict(difference, None, "one seed tells nothing about the noise")
    if len(set(ours)) == len(set(theirs)) == 1:
        return Verdict(difference, None, "the seeds of both arms gave the same value")
    from scipy import stats  # which JAX brings

    p = float(stats.ttest_ind(ours, theirs, equal_var=False).pvalue)
    return (
        Verdict(difference, None, "the test is undefined")
        if math.isnan(p)
        else Verdict(difference, p, "")
    )
