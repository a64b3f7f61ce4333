"""What statistics count, for those who count and those who look counts up."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Self

import gin

from m6rec_jax.data.dataset.schema import DatasetSpec
from m6rec_jax.errors import ConfigError


@gin.configurable
@dataclasses.dataclass(frozen=True)
class StatisticsOptions:
    """How statistics are computed; saved with them.

    Attributes:
      smoothing: shares and means are pulled towards the overall one as if by this many events.
      neighbours: whether to count pairs of items. Costs most of the time and memory of large
        catalogues: at most `2 * neighbour_window` pairs per event.
      neighbour_window: how many of a user's last items are paired with a new one.
      factors: hidden factors of items and tastes that explain values, see `value_factors`; 0: none.
        They are fitted to the users' windows, whether or not pairs are counted.
      factor_growth: they are fitted anew when this share more events came.
    """

    smoothing: float = 5.0
    neighbours: bool = True
    neighbour_window: int = 1000
    factors: int = 16
    factor_growth: float = 0.03

    def __post_init__(self) -> None:
        for name in ("smoothing", "neighbour_window", "factor_growth"):
            value = getattr(self, name)
            if value <= 0:
                raise ConfigError(f"StatisticsOptions.{name} must be positive, not {value}")
        if self.factors < 0:
            raise ConfigError(f"StatisticsOptions.factors must be 0 or more, not {self.factors}")


@dataclasses.dataclass(frozen=True)
class StatisticsSettings:
    """What statistics count of one data set.

    Attributes:
      by: item columns by which a user's behaviour is counted.
      at_least: events with at least this value are positive; None where all are.
      has_values: whether events have values.
      options: of the statistics.
    """

    by: tuple[str, ...] = ()
    at_least: float | None = None
    has_values: bool = False
    options: StatisticsOptions = dataclasses.field(default_factory=StatisticsOptions)

    @classmethod
    def for_dataset(cls, spec: DatasetSpec, options: StatisticsOptions | None = None) -> Self:
        """Those of the data set that `spec` declares; options None for gin's or the defaults."""
        has_values = spec.events.value is not None
        return cls(
            spec.statistics.by, spec.label.at_least, has_values, options or StatisticsOptions()
        )

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Self:
        """Those that `dataclasses.asdict` gave for JSON."""
        options = StatisticsOptions(**settings["options"])
        return cls(**{**settings, "by": tuple(settings["by"]), "options": options})

    @property
    def keeps_windows(self) -> bool:
        """Whether some feature needs the items that a user acted on last."""
        return self.options.neighbours or self.has_factors

    @property
    def has_factors(self) -> bool:
        """Whether values are explained by factors."""
        return self.has_values and self.options.factors > 0

    @cached_property
    def traits(self) -> frozenset[str]:
        """What features can rest on: 'labels' or 'purchases', 'values', 'neighbours', 'factors'."""
        there = {
            "labels": self.at_least is not None,
            "purchases": self.at_least is None,
            "values": self.has_values,
            "neighbours": self.options.neighbours,
            "factors": self.has_factors,
        }
        return frozenset(name for name, is_there in there.items() if is_there)

    def smoothed(self, amount: Any, count: Any, towards: Any) -> Any:
        """Share or mean of numbers or arrays, as if `smoothing` more events had the overall one."""
        return (amount + self.options.smoothing * towards) / (count + self.options.smoothing)
