"""The documented keys of YAML profiles that are not ours: what each becomes, or why it does not apply.

Keys of our own schema are taken as they are; the tables hold only the rest. Keys whose value needs
more than a new name are handled in `yaml_profile`.
"""

from __future__ import annotations

RENAMED = {
    "model.d_model": "model.hidden_size",
    "model.num_heads": "model.num_attention_heads",
    "model.num_kv_heads": "model.num_key_value_heads",
    "model.d_ff": "model.intermediate_size",
    "model.max_seq_len": "model.max_position_embeddings",
    "training.gradient_clip": "training.gradient_clipping",
    "data.train_path": "data.path",
    "data.val_path": "data.eval_path",
    "data.max_length": "data.sequence_length",
    "data.num_workers": "data.workers",
    "data.prefetch_factor": "data.prefetch",
    "evaluation.eval_freq": "training.eval_interval",
    "evaluation.save_best": "checkpoints.keep_best",
    "hardware.num_gpus": "training.distributed.world_size",
}

_MOE = "the built-in models are dense; experts come with an architecture plugin"
_COMPILED = "every step is compiled and fused by XLA"
_DEVICES = "devices are those JAX finds; virtual GPUs are not scheduled"
_PLACEMENT = "where arrays live is Virtual Blackwell's choice: vgpu.enabled=true with vgpu.mode=memory"
_PER_TENSOR = "per-tensor logging is the work of an observer plugin"
_HOST = "host statistics are the work of an observer plugin"
_SERVING = "concerns serving, not training"
_LOADER = "batches are prepared by threads in one process; nothing to pin or keep"
_ATTENTION = "the attention is softmax; another one comes with an architecture plugin"

# Features that are not here: off is what one gets, so `false` needs no note.
ABSENT = {
    "model.features.multimodal": "the built-in models read text only",
    "model.features.moe": _MOE,
    "model.features.num_experts": _MOE,
    "model.features.experts_per_token": _MOE,
    "model.features.sparse_attention": "attention is dense; model.sliding_window limits its reach",
    "model.features.adaptive_computation": "every token passes every layer",
    "model.moe": _MOE,
    "model.bistate": "bi-state alignment comes with an architecture plugin",
    "model.voting": "voting comes with an architecture plugin",
    "model.tva": _ATTENTION,
    "training.fp8_training": "narrower formats than bf16 are Virtual Blackwell's",
    "memory.offload_optimizer": _PLACEMENT,
    "memory.cpu_offload": _PLACEMENT,
    "memory.offload_activations": _PLACEMENT,
    "perf.profile_enabled": "profiling is asked for per run, not in a profile",
    "monitoring.log_gradients": _PER_TENSOR,
    "monitoring.log_parameters": _PER_TENSOR,
    "monitoring.log_activations": _PER_TENSOR,
    "monitoring.system_monitoring": _HOST,
    "monitoring.gpu_monitoring": _HOST,
    "monitoring.network_monitoring": _HOST,
    "checkpoints.cloud_backup": "the work directory may lie on mounted storage; nothing else is copied",
    "checkpoints.incremental_save": "every checkpoint is complete",
    "security.encryption": "nothing is encrypted; keep the work directory on an encrypted disk",
    "security.checkpoint_signing": "checkpoints are not signed",
    "security.secure_communication": "traffic between hosts is not encrypted; use a private network",
    "inference.speculative_decoding": _SERVING,
    "inference.quantization": _SERVING,
    "inference.dynamic_batching": _SERVING,
    "inference.tensor_parallel_inference": _SERVING,
}

# Settings without a counterpart; whatever their value, the reason is told.
NOT_APPLICABLE = {
    "model.attention_name": _ATTENTION,
    "model.features.flash_attention": "model.attention_kernel names the kernel; auto picks one by device",
    "training.max_epochs": "a run is counted in optimizer steps: set training.max_steps",
    "training.amp_level": "training.mixed_precision alone decides",
    "training.save_freq": "checkpoints are counted in steps: set checkpoints.save_interval",
    "training.checkpoint_dir": "checkpoints lie in the work directory: --workdir",
    "training.distributed.enabled": "every device present is used; world_size pins their number",
    "training.distributed.backend": "XLA brings its own collectives",
    "memory.max_memory_per_gpu": "the device's own memory is the limit",
    "vgpu.max_virtual_gpus": _DEVICES,
    "vgpu.scheduling": _DEVICES,
    "vgpu.isolation": _DEVICES,
    "vgpu.memory_pooling": _DEVICES,
    "vgpu.dynamic_allocation": _DEVICES,
    "vgpu.multi_instance": _DEVICES,
    "perf.compile_model": _COMPILED,
    "perf.use_torch_compile": _COMPILED,
    "perf.inductor_config": _COMPILED,
    "perf.kernel_fusion": _COMPILED,
    "perf.graph_optimization": _COMPILED,
    "perf.profile_interval": "profiling is asked for per run, not in a profile",
    "checkpoints.save_optimizer": "a checkpoint always holds the optimizer's state, to continue from",
    "checkpoints.sharded_checkpoints": "every host always writes its own shards",
    "data.truncation": "long documents are cut by data.packing, not truncated by the tokenizer",
    "data.padding": "rows are packed; data.packing=none gives one padded document a row",
    "data.pin_memory": _LOADER,
    "data.persistent_workers": _LOADER,
    "evaluation.metrics": "loss, perplexity and accuracy are always reported",
    "hardware.device": "the device is JAX's choice; the environment variable JAX_PLATFORMS overrules it",
    "hardware.distributed": "every device present is used",
    "hardware.backend": "XLA brings its own collectives",
    "debug": "debug switches are not part of a profile",
}

# Handled by `yaml_profile` one by one; listed so that a typing error finds them.
SPECIAL = (
    "model.architecture",
    "model.features.gradient_checkpointing",
    "training.gradient_checkpointing",
    "training.mixed_precision",
    "training.optimizer",
    "memory.gradient_checkpointing",
    "memory.activation_checkpointing",
    "memory.zero_stage",
    "monitoring.tensorboard",
    "monitoring.wandb",
    "monitoring.mlflow",
    "monitoring.prometheus",
    "data.loader",
    "profile.version",
)

# Plugin names that stand for a feature of the model rather than for a package.
FEATURE_PLUGINS = ("moe", "align", "routing", "voter")
