"""A small model on the HLBD questions: CPU or one small GPU, no downloads, minutes.

    python -m apt_jax.main --config=configs/playground.py --workdir=runs/playground

The data is generated on the first start. The loss begins near ln(vocabulary) = 6.9 and is below 1
nat per token after some 150 steps, as the model learns geometry, arithmetic, the zodiac, physics and
reversed English; then ask it:

    apt-jax hlbd verify --workdir=runs/playground
"""

from apt_jax.core.config import default_config


def get_config():
    config = default_config()
    config.profile.name = "playground"
    config.profile.description = "A small model on the HLBD questions: CPU or one small GPU, minutes."

    config.model.hidden_size = 256
    config.model.num_layers = 6
    config.model.num_attention_heads = 8
    config.model.intermediate_size = 1024
    config.model.max_position_embeddings = 128  # some eight questions a row

    config.training.batch_size = 16
    config.training.max_steps = 320
    config.training.optimizer = "muon"  # takes a third of AdamW's steps here
    config.training.learning_rate = 4e-3
    config.training.min_learning_rate = 2e-4
    config.training.warmup_steps = 30
    config.training.eval_interval = 80

    config.data.source = "hlbd"
    config.data.tokenizer = "dynamic_tag"

    config.checkpoints.save_interval = 80
    config.checkpoints.keep_last_n = 2
    return config
