"""Training losses: language modelling, option classification, contrastive retrieval, their sum."""

from m6rec_jax.objectives.classification import classification_loss
from m6rec_jax.objectives.contrastive import contrastive_loss
from m6rec_jax.objectives.language_modelling import language_modelling_loss
from m6rec_jax.objectives.sums import Loss, Metrics, Sum, Terms, is_by_job, job_losses, mean_loss
from m6rec_jax.objectives.total import total_loss

__all__ = [
    "Loss",
    "Metrics",
    "Sum",
    "Terms",
    "classification_loss",
    "contrastive_loss",
    "is_by_job",
    "job_losses",
    "language_modelling_loss",
    "mean_loss",
    "total_loss",
]
