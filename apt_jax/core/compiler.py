"""XLA options that every compiled program of ours needs."""

from __future__ import annotations

from importlib.metadata import version

_LARGEST_PLAIN_SUM = 2**22  # elements; a plain float32 sum of more may be off by percents


def compiler_options(platform: str, *, largest_array: int | None = None) -> dict[str, str]:
    """XLA options a program needs on `platform`; for `jax.jit(..., compiler_options=...)`.

    jaxlib 0.10 hands matmuls *together with their neighbours* to YNNPACK on CPU, and some of these fusions
    compute wrong numbers without a sign (a test shows one: an attention gradient off by half its size).
    Single matmuls are sound, and nearly as fast.

    Sums that stay with XLA for that reason become trees of windows there, up to 25 times as slow as a plain
    loop. The loop is exact over rows; over a whole array, all elements in one sum, it loses digits: 0.3 %
    at four million. Our own such sums are made in two stages (`model.optim.norm`), so the loop is chosen
    as long as no array is large enough to surprise a plugin that sums all of it.

    Args:
      platform: where the program will run.
      largest_array: elements of the program's largest parameter, if known.
    """
    if platform != "cpu" or not version("jaxlib").startswith("0.10."):
        return {}
    options = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}
    if largest_array is not None and largest_array <= _LARGEST_PLAIN_SUM:
        options["xla_disable_hlo_passes"] = "tree_reduction_rewriter"
    return options
