"""Which interval between saves loses least, and how much of a job's time is work?

A job that fails at random (exponentially, every `mtbf_s` on average) loses three things: the stall of each save, the work since the last
save that survived, and the restart. Saving often costs stalls, saving seldom costs work.

Sources:
    J. W. Young, "A first order approximation to the optimum checkpoint interval", Communications of the ACM 17(9), 1974, 530–531,
    doi:10.1145/361147.361115.
    J. T. Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps", Future Generation Computer Systems 22(3),
    2006, 303–312, doi:10.1016/j.future.2004.11.016. Equation 37 is the optimum, equation 20 the wall time.

Both speak of saves that are safe when the job goes on. Here a save is safe only some time later; a failure in between costs one interval
more, which is on average just that time. So it is counted with the restart (`restart_s`). An interval is measured from the end of one save
to the begin of the next: the work in it.
"""

from __future__ import annotations

import math


def young_interval_s(stall_s: float, mtbf_s: float) -> float:
    """The first-order optimum, √(2 δ M)."""
    return math.sqrt(2 * stall_s * mtbf_s)


def daly_interval_s(stall_s: float, mtbf_s: float) -> float:
    """The higher-order optimum; it stays below Young's, and right where a stall is no small part of the time between failures."""
    if stall_s >= 2 * mtbf_s:
        return mtbf_s
    ratio = stall_s / (2 * mtbf_s)
    return young_interval_s(stall_s, mtbf_s) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - stall_s


def goodput(interval_s: float, stall_s: float, restart_s: float, mtbf_s: float) -> float:
    """The fraction of the wall time that is work which counts: τ / (M e^(R/M) (e^((τ+δ)/M) − 1)). From 0 to 1.

    Failures during saves and restarts are in it.
    """
    exponent, restarts = (interval_s + stall_s) / mtbf_s, restart_s / mtbf_s
    if exponent + restarts > 700:  # beyond a double's range: such a job never gets anywhere
        return 0.0
    return interval_s / (mtbf_s * math.exp(restarts) * math.expm1(exponent))
