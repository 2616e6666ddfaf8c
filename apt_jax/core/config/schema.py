"""The configuration: every key once, with its type, allowed range, default and meaning.

`Config` and its sections are frozen dataclasses; jitted code and layers receive these and never a
ConfigDict. Units: lengths in tokens, intervals in optimizer steps, sizes in sequences.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from apt_jax.core.config.options import FrozenOptions


@dataclass(frozen=True)
class Range:
    """Inclusive bounds of a number; `above`/`below` are exclusive."""

    min: float | None = None
    max: float | None = None
    above: float | None = None
    below: float | None = None


Count = Annotated[int, Range(min=1)]
Natural = Annotated[int, Range(min=0)]
Positive = Annotated[float, Range(above=0)]
NonNegative = Annotated[float, Range(min=0)]
Fraction = Annotated[float, Range(min=0, max=1)]
Probability = Annotated[float, Range(min=0, below=1)]
Options = Mapping[str, Any]


def _empty() -> Options:
    return FrozenOptions()


@dataclass(frozen=True)
class ProfileConfig:
    name: str = "default"  # shown in the run header and in reports
    description: str = ""  # one sentence for `apt-jax profiles`
    version: str = "1"  # free text


@dataclass(frozen=True)
class ModelConfig:
    architecture: str = "apt"  # registered name: apt, llama, qwen3, or a plugin's
    hidden_size: Count = 256  # width D of the residual stream
    num_layers: Count = 6  # decoder layers L
    num_attention_heads: Count = 8  # query heads N
    num_key_value_heads: Count | None = None  # key/value heads K (GQA); none: as many as query heads
    head_dim: Count | None = None  # width H of one head; none: hidden_size / num_attention_heads
    intermediate_size: Count = 1024  # width F of the SwiGLU
    vocab_size: Count | None = None  # none: the tokenizer's size; larger pads the table
    max_position_embeddings: Count = 256  # longest sequence the model is meant for
    tie_word_embeddings: bool = True  # share the embedding table with the output head
    rms_norm_eps: Positive = 1e-6  # epsilon inside every RMSNorm
    rope_theta: Positive = 10_000.0  # base of the rotary frequencies
    rope_scaling: Options | None = None  # as in Hugging Face: {rope_type: linear|dynamic|yarn|longrope|llama3, …}
    qk_norm: bool | None = None  # RMSNorm on queries and keys; none: the architecture's own choice
    attention_bias: bool = False  # bias on the q, k, v and output projections
    sliding_window: Count | None = None  # attend only to the last w tokens; none: all
    initializer_range: Positive = 0.02  # std of the normal initialiser
    dropout: Probability = 0.0  # on the residual branches, training only
    logit_softcap: Positive | None = None  # logits = c·tanh(logits / c); none: off
    attention_kernel: str = "auto"  # registered kernel, or auto by device
    scan_layers: bool = True  # one compiled layer body for all layers
    remat_policy: str = "none"  # none, weights, dots, attention, full, offload, or a plugin's
    autopoietic: bool | None = None  # gated low-rank self-feedback on attention; none: the architecture's own choice
    autopoietic_ratio: Count = 4  # rank of that branch = max(4, hidden_size / ratio)
    left_spin: bool | None = None  # damped residual; none: the architecture's own choice
    left_spin_alpha: NonNegative = 0.1  # strength of the damping; 0 is the plain residual
    left_spin_tau: NonNegative = 1.0  # relative update size at which damping sets in
    options: Options = field(default_factory=_empty)  # handed to a plugin's architecture


@dataclass(frozen=True)
class DistributedConfig:
    strategy: str = "auto"  # ddp, fsdp, zero1-3, tensor, sequence, pipeline, expert, context, hybrid, auto
    world_size: Count | None = None  # devices to use; none: all that are present
    data_parallel: Count | None = None  # size of mesh axis `data`; none: derived
    fsdp_parallel: Count | None = None  # size of mesh axis `fsdp`; none: derived
    tensor_parallel: Count = 1  # size of mesh axis `tensor`
    pipeline_parallel: Count = 1  # size of mesh axis `pipe`
    expert_parallel: Count = 1  # size of mesh axis `expert`
    context_parallel: Count = 1  # size of mesh axis `context`
    sequence_parallel: bool = False  # with tensor_parallel: cut activations along the sequence between the blocks
    context_method: Literal["allgather", "ring", "ulysses"] = "ring"  # how attention sees the whole sequence
    pipeline_schedule: Literal["gpipe", "1f1b", "interleaved", "zero_bubble"] = "1f1b"  # order of microbatches
    pipeline_chunks: Count = 1  # interleaved: groups of layers per stage
    slices: Count | None = None  # groups of devices with a fast network inside; none: as the devices report


@dataclass(frozen=True)
class TrainingConfig:
    batch_size: Count = 16  # sequences per optimizer step, over all devices: the one batch knob
    gradient_accumulation_steps: Count = 1  # microbatches the batch is cut into
    max_steps: Count = 1000  # optimizer steps of the whole run
    learning_rate: Positive = 3e-4  # peak
    min_learning_rate: NonNegative = 0.0  # floor of the decay
    lr_schedule: str = "cosine"  # constant, linear, cosine, wsd, sgdr, or a plugin's
    warmup_steps: Natural = 100  # linear ramp from 0
    decay_steps: Natural | None = None  # wsd: length of the final decay; none: 10 % of max_steps
    sgdr_t0: Count = 100  # sgdr: steps of the first cycle
    sgdr_t_mult: Count = 2  # sgdr: growth of the cycles
    optimizer: str = "adamw"  # adamw, adamw8bit, adamw_bf16, muon, sgd, or a plugin's
    weight_decay: NonNegative = 0.01  # decoupled; matrices only, not norms, biases, embeddings
    adam_beta1: Probability = 0.9  # decay of the first moment
    adam_beta2: Probability = 0.999  # decay of the second moment
    adam_eps: Positive = 1e-8  # added to the root of the second moment
    momentum: Probability = 0.95  # muon and sgd
    gradient_clipping: Positive | None = 1.0  # global norm; none: off
    dbc_dac: bool = False  # low-rank gradient filter with the corrected projection
    dbc_dac_rank: Fraction = 0.1  # rank kept, as a share of the smaller side
    dbc_dac_blend: Fraction = 0.1  # 0: gradient as is, 1: only its low-rank part
    mixed_precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # compute dtype; auto: fp32 on CPU, else bf16
    loss: str = "cross_entropy"  # registered name
    z_loss: NonNegative = 0.0  # weight of mean(logsumexp²)
    label_smoothing: Probability = 0.0  # share of the target mass spread over the vocabulary
    loss_chunk: Count = 1024  # tokens whose logits exist at one time
    eval_interval: Natural = 100  # steps between evaluations; 0: only at the end
    eval_steps: Count = 8  # batches of one evaluation
    early_stopping_patience: Natural = 0  # evaluations without improvement before stopping; 0: never
    early_stopping_min_delta: NonNegative = 1e-3  # smallest improvement of the evaluation loss that counts
    seed: Natural = 42  # weights, dropout
    sample_prompts: tuple[str, ...] = ()  # completed before and after training; empty: taken from the data
    sample_tokens: Natural = 32  # new tokens per sample; 0: no samples
    distributed: DistributedConfig = field(default_factory=DistributedConfig)


@dataclass(frozen=True)
class DataConfig:
    source: str = "auto"  # hlbd, text, jsonl, parquet, array_record, a plugin's, or auto by file name
    path: tuple[str, ...] = ()  # files, folders or globs; a single string will do; hlbd: empty generates it
    mixture: Options = field(default_factory=_empty)  # {name: {path, source, weight}}, in place of path
    eval_path: tuple[str, ...] = ()  # held-out files; empty: eval_fraction of path
    eval_fraction: Probability = 0.02  # share of documents held out when eval_path is empty
    text_field: str = "text"  # jsonl, parquet, array_record: key of a plain document
    prompt_field: str = "prompt"  # …: key of a question; its completion is learned, it is not
    completion_field: str = "completion"  # …: key of the answer
    train_on_prompt: bool = False  # count the prompt's tokens in the loss as well
    tokenizer: str = "auto"  # dynamic_tag, bpe, chinese, hf, a plugin's, or auto by source
    tokenizer_path: str | None = None  # a trained tokenizer (folder or tokenizer.json); none: train on the data
    tokenizer_vocab_size: Count = 8192  # largest vocabulary when it is trained
    sequence_length: Count | None = None  # tokens per row; none: model.max_position_embeddings
    packing: Literal["fit", "split", "none"] = "fit"  # whole documents, one stream, or a document a row
    shuffle: bool = True  # new order each epoch
    seed: Natural = 0  # order, packing, split: apart from training.seed
    prefetch: Natural = 2  # batches prepared ahead
    workers: Natural = 1  # reading threads
    on_bad_record: Literal["stop", "skip"] = "stop"  # skip counts and reports them
    hlbd_variant: Literal["hardcore", "full"] = "hardcore"  # which set is generated when path is empty
    hlbd_samples: Count = 5000  # least number of training samples generated


@dataclass(frozen=True)
class CheckpointsConfig:
    save_interval: Natural = 500  # steps between checkpoints; 0: only at the end
    keep_last_n: Count = 5  # newest checkpoints kept
    keep_best: bool = True  # also keep the one with the lowest evaluation loss
    async_save: bool = True  # write while training goes on


@dataclass(frozen=True)
class VgpuConfig:
    enabled: bool = False  # apply Virtual Blackwell
    mode: Literal["full", "speed", "memory", "balanced"] = "balanced"  # which hooks it applies
    recipe: str = "nvfp4"  # of quantized matmuls, in the modes speed and full; fp8 on Hopper; none
    offload: Literal["auto", "none", "optimizer", "state", "all"] = "auto"  # to host memory; auto: all in mode full
    residuals: str = "none"  # number format of the activations kept for the backward pass: nvfp4, int8, …; none


@dataclass(frozen=True)
class MonitoringConfig:
    metrics_interval: Count = 10  # steps between logged metrics
    console: Literal["auto", "live", "plain", "off"] = "auto"  # auto: live on a terminal, else plain lines
    tensorboard: bool = True  # write TensorBoard events
    trackers: tuple[str, ...] = ()  # further registered trackers
    plot: bool = True  # draw loss.png at the end


@dataclass(frozen=True)
class PluginsConfig:
    enabled: tuple[str, ...] = ()  # must load, or the run stops; empty: all that are installed
    disabled: tuple[str, ...] = ()  # never loaded; *: nothing but the built-ins
    dir: str | None = None  # folder of single-file plugins


@dataclass(frozen=True)
class Config:
    """A validated configuration."""

    profile: ProfileConfig = field(default_factory=ProfileConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    data: DataConfig = field(default_factory=DataConfig)
    checkpoints: CheckpointsConfig = field(default_factory=CheckpointsConfig)
    vgpu: VgpuConfig = field(default_factory=VgpuConfig)
    schedules: Options = field(default_factory=_empty)  # curriculum: name -> schedule
    monitoring: MonitoringConfig = field(default_factory=MonitoringConfig)
    extensions: Options = field(default_factory=_empty)  # {plugin: its own settings}
    plugins: PluginsConfig = field(default_factory=PluginsConfig)
