"""GPTQ and AWQ, as qwix has them, for weights that apt_jax stores.

apt-jax quantize --in=runs/playground --out=quantized --format=int4 --method=gptq

qwix finds its way through a model by intercepting the products it computes, which stacked layers under a scan do not
allow. So only its numeric cores are used; which inputs a layer gets is summed up by apt_jax, layer by layer, and the
result is a tensor in a format of apt_jax, which is loaded, generated from and shipped without this package.
"""

from apt_jax import hookimpl

apt_jax_api = "1"


@hookimpl
def apt_quant_methods() -> dict[str, str]:
    return {"awq": "apt_jax_qwix.awq:AWQ", "gptq": "apt_jax_qwix.gptq:GPTQ"}
