"""XLA options that every compiled program of ours needs."""

from __future__ import annotations

from importlib.metadata import version


def compiler_options(platform: str) -> dict[str, str]:
    """XLA options a program needs on `platform`; for `jax.jit(..., compiler_options=...)`.

    jaxlib 0.10 hands matmuls *together with their neighbours* to YNNPACK on CPU, and some of these fusions
    compute wrong numbers without a sign (a test shows one: an attention gradient off by half its size).
    Single matmuls are sound, and nearly as fast.
    """
    if platform == "cpu" and version("jaxlib").startswith("0.10."):
        return {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}
    return {}
