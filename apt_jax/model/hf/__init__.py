"""Hugging Face folders: Llama and Qwen3 weights in and out, without torch or transformers."""

from apt_jax.model.hf.load import from_pretrained, read_generation_config
from apt_jax.model.hf.save import exportable_family, save_pretrained

__all__ = ["exportable_family", "from_pretrained", "read_generation_config", "save_pretrained"]
