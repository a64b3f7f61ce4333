"""One language model for every job of a recommender: M6-Rec in JAX, Flax, seqio and gin.

    import m6rec_jax as m6

    rec = m6.load("runs/ctr")
    rec.score(user={"age": 24}, history=[...], candidates=[...])

`load` gives a `Recommender`; everything else is imported from its own module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from m6rec_jax.recommender import Recommender, load

__all__ = ["Recommender", "load"]


def __getattr__(name: str) -> Any:
    # jax and the model load when they are asked for: `m6rec --help` needs neither.
    if name in __all__:
        from m6rec_jax import recommender

        return getattr(recommender, name)
    raise AttributeError(f"module 'm6rec_jax' has no attribute '{name}'")
