"""The Flax encoder-decoder: T5 1.1 arithmetic, scanned layers, late interaction, task prompts."""

from m6rec_jax.model.config import ModelConfig, PromptConfig
from m6rec_jax.model.m6rec import Encoded, M6Rec, Outputs

__all__ = ["Encoded", "M6Rec", "ModelConfig", "Outputs", "PromptConfig"]
