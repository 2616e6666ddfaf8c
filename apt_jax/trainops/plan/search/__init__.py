"""The search for a layout: every setting of a config on a target by closed form, the best ones compiled.

found = search(config, plugins, parse_target("h100:16", plugins), compile_best=8)
print(render(found))                      # the Pareto list: memory of a device against the least time of a step
"""

from apt_jax.trainops.plan.search.candidates import Candidate, enumerate_candidates
from apt_jax.trainops.plan.search.dimensions import DIMENSIONS, Dimension
from apt_jax.trainops.plan.search.result import Entry, SearchResult
from apt_jax.trainops.plan.search.run import SearchError, search
from apt_jax.trainops.plan.search.text import render

__all__ = [
    "DIMENSIONS", "Candidate", "Dimension", "Entry", "SearchError", "SearchResult", "enumerate_candidates", "render",
    "search",
]  # fmt: skip
