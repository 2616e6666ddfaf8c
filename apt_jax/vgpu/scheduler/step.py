"""A training step as one device sees it: the sizes that everything in the closed form is made of."""

from __future__ import annotations

from dataclasses import dataclass, replace

from apt_jax.core.config.schema import ModelConfig, TrainingConfig
from apt_jax.core.errors import ConfigError, unknown_name
from apt_jax.vgpu.scheduler.mesh import Mesh
from apt_jax.vgpu.scheduler.optimizer import OPTIMIZERS, StateSize
from apt_jax.vgpu.scheduler.shapes import Tensor, Widths, parameters, widths

REMAT = ("none", "weights", "dots", "attention", "full", "offload")
OFFLOADS = ("none", "optimizer", "state", "all")
DTYPES = {"fp32": 4, "bf16": 2, "fp16": 2, "auto": 2}  # bytes; auto: bf16, as on every accelerator
ATTENTION_CHUNK = 128  # queries whose logits exist at one time, in `model.layers.kernels`
_PREFIXES = 8  # most key ranges of a row, there


@dataclass(frozen=True)
class Step:
    """A step as one device sees it.

    Attributes:
      w, mesh, tensors: of the model and the layout, whole.
      remat, kernel: names of the remat policy and the attention kernel.
      rows, length: sequences of a microbatch on this device, and tokens of each.
      micros: microbatches of a step.
      e: bytes of the compute dtype.
      loss_chunk: tokens whose logits exist at one time.
      optimizer: what it keeps.
      schedule, chunks: of the pipeline; groups of layers per stage.
      offload: what of the layers lies in host memory, one of `OFFLOADS`.
      clips: the gradient is clipped by its norm.
    """

    w: Widths
    mesh: Mesh
    tensors: tuple[Tensor, ...]
    remat: str
    kernel: str
    rows: int
    length: int
    micros: int
    e: int
    loss_chunk: int
    optimizer: StateSize
    schedule: str
    chunks: int
    offload: str = "none"
    clips: bool = True

    @property
    def t(self) -> int:
        """Tokens of a microbatch."""
        return self.rows * self.length

    @property
    def s(self) -> int:
        """Tokens of the stream between blocks."""
        return self.t // (self.mesh.tensor if self.mesh.sequence_parallel else 1)

    @property
    def F(self) -> int:
        """Width of the SwiGLU."""
        return self.w.F // self.mesh.tensor

    @property
    def Q(self) -> int:
        """Width of the query heads."""
        return self.w.N * self.w.H // self.mesh.tensor

    @property
    def KV(self) -> int:
        """Width of the key heads."""
        return self.w.K * self.w.H // self.mesh.tensor

    @property
    def V(self) -> int:
        """Rows of the vocabulary."""
        return self.w.V // self.mesh.tensor

    @property
    def layers(self) -> int:
        """Layers whose inputs are kept at a time: of one group of layers where there are pipeline stages."""
        return self.w.L // (self.mesh.pipe * self.chunks)

    @property
    def layers_held(self) -> int:
        """Layers whose parameters are here."""
        return self.w.L // self.mesh.pipe

    @property
    def layers_on_host(self) -> bool:
        """Whether weights and gradients of the layers lie in host memory."""
        return self.offload in ("state", "all")

    @property
    def logits(self) -> int:
        """Attention logits of a layer, all chunks: each chunk of queries against the keys up to its last."""
        ranges = self.ranges
        per_head = self.length**2 if self.kernel == "reference" else sum(q * k for q, k in ranges)
        return self.rows * self.w.N // self.mesh.tensor * per_head

    @property
    def unrolled_attention(self) -> bool:
        """Whether every chunk of queries has a key range of its own."""
        return self.length <= ATTENTION_CHUNK * _PREFIXES

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """(queries alive at a time, keys) of every key range."""
        block = ATTENTION_CHUNK * -(-self.length // (ATTENTION_CHUNK * _PREFIXES))
        stops = range(block, self.length + block, block)
        return [(min(ATTENTION_CHUNK, self.length), min(stop, self.length)) for stop in stops]

    def held(self, *, layered: bool | None = None, without: tuple[str, ...] = (), part: str = "") -> int:
        """Numbers of the parameters on this device that are (not) the layers', with `part` in their names."""
        return sum(
            self.mesh.share(tensor.shape, tensor.axes, without)
            for tensor in self.tensors
            if (layered is None or tensor.layered is layered) and part in tensor.path
        )


def make_step(
    model: ModelConfig,
    training: TrainingConfig,
    mesh: Mesh,
    length: int,
    vocab_size: int | None = None,
    offload: str = "none",
) -> Step:
    """Raises ConfigError for sizes that the mesh does not divide, what cannot be offloaded, and as `shapes.widths`."""
    w, micros = widths(model, vocab_size), training.gradient_accumulation_steps
    micro = training.batch_size // micros
    if micro % mesh.rows:
        raise ConfigError(
            f"training.batch_size: {training.batch_size} cut in {micros} gives {micro} sequences, which {mesh.rows} "
            "data-parallel devices cannot share equally"
        )
    if training.optimizer not in OPTIMIZERS:
        known = unknown_name("optimizer", training.optimizer, OPTIMIZERS)
        raise ConfigError(f"training.optimizer: {known}; `apt-jax plan` compiles any")
    if model.remat_policy not in REMAT:
        known = unknown_name("remat policy", model.remat_policy, REMAT)
        raise ConfigError(f"model.remat_policy: {known}; `apt-jax plan` compiles any")
    _check_offload(offload, model.remat_policy, mesh)
    optimizer = OPTIMIZERS[training.optimizer]
    if training.optimizer == "sgd" and not training.momentum:
        optimizer = replace(optimizer, matrix=0, other=0)
    layout = training.distributed
    return Step(
        w=w,
        mesh=mesh,
        tensors=parameters(model, vocab_size),
        remat=model.remat_policy,
        kernel=model.attention_kernel,
        rows=micro // mesh.rows,
        length=length // mesh.context,
        micros=micros,
        e=DTYPES[training.mixed_precision],
        loss_chunk=training.loss_chunk,
        optimizer=optimizer,
        schedule=layout.pipeline_schedule,
        chunks=layout.pipeline_chunks if mesh.pipe > 1 else 1,
        offload=offload,
        clips=training.gradient_clipping is not None,
    )


def _check_offload(offload: str, remat: str, mesh: Mesh) -> None:
    """What training refuses as well."""
    if offload not in OFFLOADS:
        raise ConfigError(f"vgpu.offload: {unknown_name('choice', offload, OFFLOADS)}")
    if mesh.pipe > 1 and (offload != "none" or remat == "offload"):
        raise ConfigError(
            "training.distributed.pipeline_parallel: stages keep their layers and inputs on the device; use 1 with "
            "vgpu.offload or model.remat_policy=offload, or cut over fsdp"
        )
    if offload in ("state", "all") and remat in ("none", "weights"):
        raise ConfigError(
            f"vgpu.offload: {offload} needs a model.remat_policy that takes weights again in the backward pass, not "
            f"{remat}; use full or offload"
        )
