"""Text generation: sampling, batching, streaming."""

from apt_jax.model.generation.config import GenerationConfig, from_hf
from apt_jax.model.generation.generator import Generator, generate
from apt_jax.model.generation.text import TextStream, generate_text

__all__ = ["GenerationConfig", "Generator", "TextStream", "from_hf", "generate", "generate_text"]
