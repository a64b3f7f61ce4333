"""Training losses: language modelling, option classification, contrastive retrieval, their sum."""

from m6rec_jax.objectives.sums import Loss, Metrics, Sum, Terms, mean_loss, window_means
from m6rec_jax.objectives.total import total_loss

__all__ = ["Loss", "Metrics", "Sum", "Terms", "mean_loss", "total_loss", "window_means"]
