"""`python -m apt_jax` and the console script `apt-jax`."""

from __future__ import annotations

import sys

from apt_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
