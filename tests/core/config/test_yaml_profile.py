"""Profiles in the documented YAML format: mapped, noted with a reason, or refused. Never dropped."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from apt_jax.core.config import default_config, diff, load_profile, profile_notes
from apt_jax.core.config.keys import all_keys
from apt_jax.core.config.yaml_keys import ABSENT, NOT_APPLICABLE, RENAMED, SPECIAL
from apt_jax.core.config.yaml_loader import load_yaml
from apt_jax.core.config.yaml_profile import read_yaml_profile
from apt_jax.core.errors import ConfigError

FULL = """\
profile: {name: full, description: The largest, version: 2.0}
model:
  architecture: apt_xlarge
  hidden_size: 4096
  num_layers: 48
  num_attention_heads: 64
  intermediate_size: 16384
  max_position_embeddings: 8192
  vocab_size: 150000
  features:
    multimodal: true
    moe: true
    num_experts: 16
    experts_per_token: 2
    flash_attention: true
    gradient_checkpointing: true
    sparse_attention: true
    adaptive_computation: true
training:
  batch_size: 128
  gradient_accumulation_steps: 16
  learning_rate: 1.5e-5
  warmup_steps: 5000
  max_steps: 1000000
  distributed:
    enabled: true
    backend: nccl
    world_size: 64
    pipeline_parallel: 4
    tensor_parallel: 4
    data_parallel: 4
    expert_parallel: 4
    sequence_parallel: true
  mixed_precision: bf16
  fp8_training: true
  optimizer: adamw_fused
  weight_decay: 0.01
  adam_beta1: 0.9
  adam_beta2: 0.95
  adam_eps: 1e-8
  gradient_clipping: 1.0
memory:
  offload_optimizer: true
  cpu_offload: true
  max_memory_per_gpu: "80GB"
  gradient_checkpointing: true
  activation_checkpointing: full
  offload_activations: true
  zero_stage: 3
vgpu:
  enabled: true
  max_virtual_gpus: 64
  scheduling: adaptive
  isolation: true
  memory_pooling: true
  dynamic_allocation: true
  multi_instance: true
perf:
  compile_model: true
  use_torch_compile: true
  inductor_config: {max_autotune: true, shape_padding: true}
  profile_enabled: true
  profile_interval: 500
  kernel_fusion: true
  graph_optimization: true
extensions:
  rag: {enabled: true, index_type: faiss_gpu_multi, embedding_dim: 4096}
plugins:
  enabled: [custom_metrics, auto_tuning]
monitoring:
  tensorboard: true
  wandb: true
  mlflow: false
  prometheus: true
  metrics_interval: 5
  log_gradients: true
  gpu_monitoring: true
checkpoints:
  save_interval: 100
  keep_last_n: 20
  save_optimizer: true
  async_save: true
  sharded_checkpoints: true
  cloud_backup: true
  incremental_save: true
security: {encryption: true, checkpoint_signing: true, secure_communication: true}
data: {num_workers: 16, prefetch_factor: 4, pin_memory: true, persistent_workers: true}
inference: {speculative_decoding: true, quantization: int8, dynamic_batching: true}
"""

REASONING = """\
profile: {name: gpt5_moe_reasoning, version: 1.0.0}
plugins: [moe, align, routing, voter]
model:
  d_model: 768
  num_heads: 12
  num_layers: 24
  d_ff: 3072
  vocab_size: 50257
  max_seq_len: 2048
  attention_name: tva_default
  tva: {r: 4, s: 1, tau: 0.18}
  moe: {enabled: true, experts: 64, top_k: 2, capacity: 1.25}
  bistate: {alpha: 0.35, beta: 0.20, tau_align: 0.15}
  voting: {threshold: 2.2, k: 3}
training:
  batch_size: 32
  max_epochs: 50
  max_steps: 20000
  learning_rate: 3e-5
  warmup_steps: 1500
  weight_decay: 0.015
  gradient_clip: 1.0
  mixed_precision: true
  amp_level: O1
  save_freq: 1
  checkpoint_dir: ./checkpoints/gpt5_moe
schedules:
  enable_moe_at_epoch: 2
  route_temp: {start: 1.5, end: 0.8, by: epoch}
  align_weight: {start: 0.0, end: 0.3, by: step, warmup: 5000}
data: {train_path: train.jsonl, val_path: val.jsonl, loader: text_default, max_length: 2048,
       truncation: true, padding: max_length}
evaluation: {metrics: [perplexity, accuracy], eval_freq: 500, save_best: true}
monitoring:
  wandb: {enabled: false, project: apt-gpt5-moe}
  tensorboard: {enabled: true, log_dir: ./logs}
hardware: {device: cuda, num_gpus: 4, distributed: true, backend: nccl}
debug: {anomaly: false}
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write_text(text: str) -> str:
        (tmp_path / "x.yaml").write_text(text)
        return "x.yaml"

    return write_text


def test_the_full_profile_is_read(write):
    config = load_profile(write(FULL))
    assert (config.profile.name, config.profile.version) == ("full", "2.0")
    assert (config.model.architecture, config.model.hidden_size) == ("apt", 4096)
    assert config.model.remat_policy == "full"
    assert config.training.learning_rate == 1.5e-5 and config.training.adam_eps == 1e-8
    assert config.training.optimizer == "adamw"
    layout = config.training.distributed
    assert (layout.strategy, layout.data_parallel, layout.expert_parallel) == ("zero3", 1, 4)
    assert config.vgpu.enabled is True
    assert config.extensions["rag"]["embedding_dim"] == 4096
    assert config.plugins.enabled == ("custom_metrics", "auto_tuning")
    assert config.monitoring.trackers == ("wandb", "prometheus")
    assert (config.data.workers, config.data.prefetch) == (16, 4)


def test_the_reasoning_profile_is_read(write):
    config = load_profile(write(REASONING))
    assert (config.model.hidden_size, config.model.num_attention_heads) == (768, 12)
    assert (config.model.intermediate_size, config.model.max_position_embeddings) == (3072, 2048)
    assert config.training.mixed_precision == "auto" and config.training.gradient_clipping == 1.0
    assert config.schedules["route_temp"] == {"start": 1.5, "end": 0.8, "by": "epoch"}
    assert (config.data.path, config.data.eval_path) == (("train.jsonl",), ("val.jsonl",))
    assert (config.data.source, config.data.sequence_length) == ("auto", 2048)
    assert config.training.eval_interval == 500 and config.checkpoints.keep_best is True
    assert config.training.distributed.world_size == 4
    assert config.plugins.enabled == () and config.monitoring.trackers == ()


@pytest.mark.parametrize("text", [FULL, REASONING], ids=["full", "reasoning"])
def test_no_key_is_dropped_silently(tmp_path, text):
    """Without any one key of the profile, the values or the notes are others."""

    def read(values) -> tuple[object, list[str]]:
        path = tmp_path / "x.yaml"
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        draft = read_yaml_profile(path)
        return draft.values, [re.sub(r":\d+:", ":", note) for note in draft.notes]

    values = load_yaml(_written(tmp_path / "whole.yaml", text))[0]
    whole = read(values)
    for path, value in _leaves(values):
        # A feature switched off is what one gets, `enabled: true` goes without saying beside other
        # settings, and two keys may ask for the same recomputation.
        if value is not False and path[-1] != "enabled" and not path[-1].endswith("_checkpointing"):
            assert read(_without(values, path)) != whole, ".".join(path)


def _written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def _leaves(node, path=()):
    for name, value in node.items():
        if isinstance(value, dict):
            # What lies below a key that does not apply goes with it.
            if ".".join((*path, name)) not in {*ABSENT, *NOT_APPLICABLE}:
                yield from _leaves(value, (*path, name))
        else:
            yield (*path, name), value


def _without(node, path):
    head, *rest = path
    changed = (
        {**node, head: _without(node[head], rest)} if rest else {k: v for k, v in node.items() if k != head}
    )
    return {name: value for name, value in changed.items() if value != {}}


def test_notes_name_line_key_and_reason(write):
    (note,) = profile_notes(write("perf:\n  use_torch_compile: true\n"))
    assert note == "x.yaml:2: perf.use_torch_compile: every step is compiled and fused by XLA"


def test_loading_logs_the_notes(write, caplog):
    load_profile(write("vgpu: {scheduling: fair}\n"))
    assert "vgpu.scheduling: devices are those JAX finds" in caplog.text


def test_a_feature_that_is_off_needs_no_note(write):
    assert profile_notes(write("model: {features: {moe: false, multimodal: false}}\n")) == ()


def test_a_missing_key_takes_our_default(write):
    assert diff(default_config(), load_profile(write("vgpu:\n  enabled: true\n"))) == [
        "profile.name: 'default' -> 'x'",
        "vgpu.enabled: False -> True",
    ]


def test_tracker_settings_go_to_the_extension_whatever_the_order(write):
    monitoring = "monitoring: {trackers: mine, wandb: {enabled: true, project: p}}\n"
    extensions = "extensions: {lora: {rank: 8}}\n"
    for text in (monitoring + extensions, extensions + monitoring):
        config = load_profile(write(text))
        assert config.monitoring.trackers == ("mine", "wandb")
        assert config.extensions == {"lora": {"rank": 8}, "wandb": {"project": "p"}}


def test_an_empty_section_is_no_mistake(write):
    config = load_profile(write("extensions:\nschedules:\nmodel:\n"))
    assert config.extensions == {} and config.schedules == {}


@pytest.mark.parametrize("key", [*RENAMED, *ABSENT, *NOT_APPLICABLE, *SPECIAL])
def test_no_documented_key_is_unknown(write, key):
    """With a nonsense value each is accepted with a note, or refused for its value."""
    text, *rest = reversed(key.split("."))
    text = f"{text}: nonsense"
    for part in rest:
        text = f"{part}: {{{text}}}"
    try:
        notes = profile_notes(write(text + "\n"))
        load_profile("x.yaml")
    except ConfigError as error:
        assert "unknown key" not in str(error)
    else:
        assert notes or key in (*RENAMED, *SPECIAL)


def test_every_renamed_key_leads_to_one_of_ours():
    assert set(RENAMED.values()) <= set(all_keys())
    assert not set(all_keys()) & {*RENAMED, *ABSENT, *NOT_APPLICABLE}
