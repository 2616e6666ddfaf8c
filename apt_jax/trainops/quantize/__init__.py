"""Trained models with weights stored in few bits: made, measured, written, read."""

from apt_jax.trainops.quantize.calibrated import calibration_batches
from apt_jax.trainops.quantize.load import QuantizedModel, is_quantized_folder, load_quantized
from apt_jax.trainops.quantize.model import quantize_model
from apt_jax.trainops.quantize.save import check_out, save_quantized

__all__ = [
    "QuantizedModel",
    "calibration_batches",
    "check_out",
    "is_quantized_folder",
    "load_quantized",
    "quantize_model",
    "save_quantized",
]
