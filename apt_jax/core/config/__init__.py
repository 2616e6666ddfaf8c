"""Configuration: schema, validation, profiles, and the command line.

config = load_profile("standard")        # a locked ConfigDict; also a .py or .yaml path
config.training.batch_size = 8
frozen = validate(config)                # nested frozen dataclasses, or one ConfigError line
"""

from apt_jax.core.config.flags import RunArguments, parse_command_line
from apt_jax.core.config.keys import describe_keys
from apt_jax.core.config.profiles import list_profiles, load_profile, profile_notes
from apt_jax.core.config.schema import Config
from apt_jax.core.config.validate import default_config, diff, to_config_dict, to_dict, validate

__all__ = [
    "Config",
    "RunArguments",
    "default_config",
    "describe_keys",
    "diff",
    "list_profiles",
    "load_profile",
    "parse_command_line",
    "profile_notes",
    "to_config_dict",
    "to_dict",
    "validate",
]
