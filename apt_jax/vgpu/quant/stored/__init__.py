"""Weights kept quantised: chosen by path, rounded by a method, used layer by layer, put on disk as they are.

params = quantize_params(params, [("layers/.*", "nvfp4")], plugins, method="mse")
params["layers"]["mlp"]["up"]["kernel"]                # a QTensor [L, K, N] in place of the array
"""

from apt_jax.vgpu.quant.stored.methods import CalibratedMethod, Method, find_method, quantize_weight
from apt_jax.vgpu.quant.stored.params import path_of, quantize_params, select

__all__ = ["CalibratedMethod", "Method", "find_method", "path_of", "quantize_params", "quantize_weight", "select"]
