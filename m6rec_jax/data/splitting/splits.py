"""Splits: which part (train, validation, test) each row of the events table belongs to.

Splits of events are expressions in SQL (`event_table.EventTable.assign`); here are their names and
options, and the splits that hash names or start from another one. `train` and `validation` are
shares; decimal fractions are taken exactly (0.8 is 4/5).

Who may see what:

  * A row's history holds events of the same user only, of the parts in `VISIBLE_PARTS[part]`:
    training and validation rows see training events, test rows see training and validation events.
    No row sees a test event. For scoring they must lie *strictly* before the first impression of
    the row's group; for retrieval ("next items") they come before it in the user's order.
  * Statistics of items hold training events only, strictly before the first impression of the
    group. So do those of the user, but in rows of the test part they hold that user's validation
    events, too: whatever the history may hold.

Two kinds of splits differ in what histories and statistics of users hold (`Split.visible_parts`):

  * `by_user`: users of validation and test have no training events. Their rows see their own
    earlier events, test events of test rows among them; no row of anybody else sees those.
  * A few-shot split with `history=sampled` is stricter: its validation events are seen by no row.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from m6rec_jax.errors import DataError
from m6rec_jax.io.closest import did_you_mean

PARTS = ("train", "validation", "test")
TRAIN, VALIDATION, TEST = range(3)
# Seen in histories and statistics, as a training row is, but not trained on (few-shot splits, and
# where a column says so).
CONTEXT = 3
# Seen by nothing.
EXCLUDED = -1
# What a column of the events may call a part.
PART_NAMES: Mapping[str, int] = {name: code for code, name in enumerate((*PARTS, "context"))}

# Part of a row -> parts whose events its history may hold.
VISIBLE_PARTS: Mapping[int, tuple[int, ...]] = {
    TRAIN: (TRAIN, CONTEXT),
    VALIDATION: (TRAIN, CONTEXT),
    TEST: (TRAIN, CONTEXT, VALIDATION),
}
# Parts whose events statistics may hold. Those of other parts that a history may hold count in
# statistics of their user alone, in rows whose history may hold them.
STATISTICS_PARTS = (TRAIN, CONTEXT)
# `VISIBLE_PARTS` where all events of a user are of one part.
VISIBLE_PARTS_BY_USER: Mapping[int, tuple[int, ...]] = {
    TRAIN: STATISTICS_PARTS,
    VALIDATION: (VALIDATION,),
    TEST: (TEST,),
}


def part_counts(codes: np.ndarray) -> dict[str, int]:
    """Rows of each part, and of "context" and "excluded" where there are any."""
    named = {**PART_NAMES, "excluded": EXCLUDED}
    counts = {name: int((codes == code).sum()) for name, code in named.items()}
    return {name: count for name, count in counts.items() if count or name in PARTS}


def check_parts(codes: np.ndarray, split: str, rows: str = "events") -> None:
    """Raises DataError where a part has no rows; `codes` `[rows]` int8."""
    counts = part_counts(codes)
    for part in PARTS:
        if not counts[part]:
            others = ", ".join(f"{name} {count:,}" for name, count in counts.items())
            raise DataError(
                f"split {split!r}: part {part!r} is empty ({len(codes):,} {rows}: {others}); the "
                "data set is too small for this split, or its fractions leave nothing for it"
            )


def by_name(
    names: Sequence[str], *, train: float = 0.8, validation: float = 0.1, seed: int = 0
) -> np.ndarray:
    """Part codes `[names]` int8 by a hash of each name and the seed alone.

    So all that goes by one name goes to one part, in every data set and however it grows.
    """
    cuts = [float(cut) for cut in shares("by name", train, validation)]
    drawn = {name: _uniform(f"{seed}:{name}") for name in set(names)}
    numbers = np.asarray([drawn[name] for name in names], np.float64)
    return np.searchsorted(cuts, numbers, side="right").astype(np.int8)


def is_held_out(item_ids: Sequence[str], *, fraction: float, seed: int) -> np.ndarray:
    """Draws the held-out items `[items]` bool, each by a hash of its id and the seed alone."""
    held_out = np.asarray([_uniform(f"{seed}:{item}") < fraction for item in item_ids], bool)
    if not held_out.any():
        raise DataError(
            f"split 'held_out_items': a fraction of {fraction} with seed={seed} holds out none of "
            f"{len(held_out)} items; give a larger fraction or another seed"
        )
    return held_out


def few_shot(codes: np.ndarray, *, n: int, seed: int, history: str = "all") -> np.ndarray:
    """Keeps `n` training rows of the part codes `[rows]`, drawn without replacement.

    Args:
      history: what becomes of the other training rows. "all": they stay visible in histories and
        statistics (code CONTEXT), only the number of *trained* rows is small, as in TALLRec.
        "sampled": they are excluded, and `Split.visible_parts` keeps validation events out of the
        histories and statistics of test rows, so that nothing but the n rows is known.

    Raises:
      DataError: fewer than `n` training rows.
    """
    rows = np.flatnonzero(codes == TRAIN)
    if not 0 < n <= len(rows):
        raise DataError(f"split 'few_shot': n={n} of {len(rows):,} training rows is impossible")
    codes = codes.copy()
    codes[rows] = CONTEXT if history == "all" else EXCLUDED
    codes[np.random.default_rng(seed).choice(rows, n, replace=False)] = TRAIN
    return codes


@dataclasses.dataclass(frozen=True)
class Split:
    """A split by name, with the options of its kind (`KINDS`): what `prepare(split=...)` and
    `dataset.json` name, and prepared data sets are called after.

    `base` is the split that a held-out or few-shot split starts from, by its option `of`; None for
    the others.
    """

    kind: str
    options: Mapping[str, Any]
    name: str
    base: Split | None = None

    @classmethod
    def parse(cls, text: str, declared: Mapping[str, Any] | None = None) -> Split:
        """Reads a split's name, with options where wanted: `few_shot:n=256,seed=1`.

        Args:
          text: a kind, or an entry of `declared`, perhaps with `:key=value,...`.
          declared: `splits` of dataset.json, such as {"small": {"kind": "few_shot", "n": 256,
            "seed": 0}}; an entry called like a kind gives that kind its options.

        Raises:
          DataError: no such split (the message names the closest one), or no such option.
        """
        split = cls(*_read(text, declared or {}))
        if (of := split.options.get("of")) is None:
            return split
        base = cls(*_read(of, declared or {}))
        if "of" in base.options:
            raise DataError(f"split {split.name!r} cannot start from {base.name!r}, also derived")
        return dataclasses.replace(split, base=base)

    @property
    def visible_parts(self) -> Mapping[int, tuple[int, ...]]:
        """Part of a row -> parts whose events its history may hold."""
        if self.options.get("history") == "sampled":
            return dict.fromkeys(VISIBLE_PARTS, STATISTICS_PARTS)
        of_users = (self.base or self).kind == "by_user"
        return VISIBLE_PARTS_BY_USER if of_users else VISIBLE_PARTS

    def arguments(self) -> dict[str, Any]:
        """The options without `of`: keyword arguments of the function."""
        return {key: value for key, value in self.options.items() if key != "of"}


_Share = Annotated[float, msgspec.Meta(gt=0, lt=1)]
_Whole = Annotated[int, msgspec.Meta(ge=0)]
_SHARES = [("train", _Share, 0.8), ("validation", _Share, 0.1)]
_DRAWN = [("seed", _Whole, 0), ("of", str, "per_user_temporal")]
# Options of each kind: name, what it may be, and what it is where nothing is said.
KINDS: Mapping[str, list[tuple[str, Any, Any]]] = {
    "per_user_temporal": _SHARES,
    "global_temporal": _SHARES,
    "leave_one_out": [],
    "held_out_items": [("fraction", _Share, 0.05), *_DRAWN],
    "few_shot": [("n", _Whole, 256), ("history", Literal["all", "sampled"], "all"), *_DRAWN],
    "by_user": [*_SHARES, ("seed", _Whole, 0)],
    "by_column": [],
    "by_group": [*_SHARES, ("seed", _Whole, 0)],
}


def _read(text: str, declared: Mapping[str, Any]) -> tuple[str, dict[str, Any], str]:
    """Kind, options and name of a split; arguments and errors as `Split.parse`."""
    name, _, tail = text.partition(":")
    _check(name, [*KINDS, *declared])
    written = {"kind": name, **declared.get(name, {})}
    kind = written.pop("kind")
    _check(kind, KINDS)
    given: dict[str, Any] = {}
    for pair in filter(None, tail.split(",")):
        key, equals, value = pair.partition("=")
        if not equals:
            raise DataError(f"split {text!r}: {pair!r} is not of the form key=value")
        given[key.strip()] = value.strip()
    written |= given
    kinds = msgspec.defstruct(kind, KINDS[kind], forbid_unknown_fields=True)
    try:
        options = msgspec.to_builtins(msgspec.convert(written, kinds, strict=False))
    except msgspec.ValidationError as error:
        names = ", ".join(kinds.__struct_fields__) or "none"
        raise DataError(
            f"split {text!r}: {error}, in {written} (options of {kind}: {names})"
        ) from error
    if "train" in options:
        shares(kind, options["train"], options["validation"])
    suffix = "".join(f"-{key}{value}" for key, value in given.items())
    # The name becomes part of a TFDS config name, "<dataset>.<split>.<view>".
    return kind, options, re.sub(r"[^\w\-]", "_", name + suffix)


def _check(name: Any, names: Collection[str]) -> None:
    if name not in list(names):
        near, known = did_you_mean(str(name), names), ", ".join(dict.fromkeys(names))
        raise DataError(f"there is no split {name!r}{near} (known: {known})")


def shares(split: str, train: float, validation: float) -> tuple[Fraction, Fraction]:
    """Cumulative shares as exact decimal fractions: in floats 0.7 of 10 rows could be 6."""
    first = Fraction(str(train))
    second = first + Fraction(str(validation))
    if not (0 < first < second < 1):
        raise DataError(
            f"split {split!r}: train={train} and validation={validation} must be positive and "
            "leave something for test"
        )
    return first, second


def _uniform(text: str) -> float:
    """A number in [0, 1) from a text, the same on every machine and in every run."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
