"""List the shipped profiles, or describe one."""

from __future__ import annotations

from collections.abc import Sequence

from apt_jax.cli.arguments import Parser
from apt_jax.core.config import default_config, diff, list_profiles, load_profile, profile_notes, validate


def main(argv: Sequence[str]) -> int:
    """Without an argument one line per shipped profile; with one, all it sets."""
    parser = Parser("profiles", "List the shipped profiles, or describe one.")
    parser.add_argument("profile", nargs="?", help="a shipped name, a .py or a .yaml file")
    profile = parser.parse_args(argv).profile
    print("\n".join(_describe(profile) if profile else _summaries()))
    return 0


def _summaries() -> list[str]:
    described = {name: validate(load_profile(name)).profile.description for name in list_profiles()}
    width = max(map(len, described), default=0)
    return [f"{name:{width}}  {text}" for name, text in described.items()]


def _describe(profile: str) -> list[str]:
    """Its description, every key that differs from the defaults, and what of it does not apply."""
    config = validate(load_profile(profile))
    changes = [line for line in diff(default_config(), config) if not line.startswith("profile.")]
    lines = (*changes, *profile_notes(profile))
    return [f"{config.profile.name}: {config.profile.description}", *(f"  {line}" for line in lines)]
