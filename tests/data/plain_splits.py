"""Splits of events by their definitions, one row at a time."""

from fractions import Fraction

import numpy as np

from m6rec_jax.data.splitting.splits import VALIDATION


def plain_split(kind, users, times, train=0.8, validation=0.1):
    """Part codes `[rows]` of 'per_user_temporal', 'leave_one_out' or 'global_temporal'."""
    shares = Fraction(str(train)), Fraction(str(train)) + Fraction(str(validation))
    in_time = sorted(range(len(users)), key=lambda row: times[row])  # equal ones as in the file
    if kind == "global_temporal":
        cuts = [times[in_time[int(share * len(in_time))]] for share in shares]
        return np.asarray([sum(time >= cut for cut in cuts) for time in times], np.int8)
    codes = np.zeros(len(users), np.int8)
    for user in set(users):
        own = [row for row in in_time if users[row] == user]
        n = len(own)
        ends = [n - 2, n - 1] if n >= 3 else [n, n]
        if kind == "per_user_temporal":
            ends = [int(share * n) for share in shares]
        codes[own] = [sum(place >= end for end in ends) for place in range(n)]
    if kind == "per_user_temporal" and VALIDATION not in codes:
        return plain_split("leave_one_out", users, times)
    return codes
