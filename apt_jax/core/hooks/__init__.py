"""The specifications of the hooks, by kind; plugins read them through `apt_jax.core.hookspecs`."""
