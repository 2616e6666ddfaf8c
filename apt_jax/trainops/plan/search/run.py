"""The search: closed form for all, the compiler for the best."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from apt_jax.core.config import Config
from apt_jax.core.configured import configured
from apt_jax.core.errors import AptError, ConfigError
from apt_jax.trainops.engine.setup import resolve_dtype
from apt_jax.trainops.plan.changes import ERROR
from apt_jax.trainops.plan.compiled import vocabulary
from apt_jax.trainops.plan.make import make_plan, short_dtype
from apt_jax.trainops.plan.plan import Plan
from apt_jax.trainops.plan.search.bound import ClosedForm, Sketch
from apt_jax.trainops.plan.search.candidates import Candidate, enumerate_candidates, own_candidate
from apt_jax.trainops.plan.search.dimensions import DIMENSIONS, NOT_SEARCHED, Dimension
from apt_jax.trainops.plan.search.pareto import front, fronts, spread
from apt_jax.trainops.plan.search.result import Entry, SearchResult
from apt_jax.trainops.plan.text import size_text
from apt_jax.vgpu.runtime.switch import config_alone
from apt_jax.vgpu.scheduler.devices import Target, TargetError
from apt_jax.vgpu.scheduler.estimator import check_residuals
from apt_jax.vgpu.scheduler.shapes import count_parameters

if TYPE_CHECKING:
    from apt_jax.core.registry import Plugins

COMPILE_BEST = 8
SLOWEST = 1.5  # times the fastest bound: what is slower still is no choice, however little memory it takes
TOO_LARGE = "too large by the closed form"
SURELY_TOO_LARGE = f"{TOO_LARGE}, even if that is {ERROR:.0%} too high"
TOO_SLOW = f"more than {SLOWEST:g} × the least time by the closed form"
_RESCUES = 3  # of the smallest, compiled where nothing else fits


class SearchError(AptError):
    """There is nothing to search."""


def search(
    config: Config,
    plugins: Plugins,
    target: Target,
    *,
    compile_best: int | None = COMPILE_BEST,
    dimensions: Sequence[Dimension] = DIMENSIONS,
    progress: Callable[[str], None] = lambda line: None,
) -> SearchResult:
    """Memory against the least time of a step, over all settings of a config on a target.

    What lies in host memory counts by the time it takes to come and go. The batch is the config's; `world_size`
    becomes the target's count.

    Args:
      config: validated.
      plugins: as for `make_plan`.
      target: devices, all of which are used.
      compile_best: settings given to the compiler, the config's own among them; None: closed form alone.
      dimensions: what varies.
      progress: told, before each compilation, what comes.

    Raises:
      SearchError: no setting shares the devices out, or the closed form does not know the model.
      ConfigError: `vgpu.residuals`, which the closed form does not know.
      TargetError: no compiler for the target.
    """
    config = configured(config, plugins)  # as the environment has it now; candidates by their values alone
    check_residuals(config)
    with config_alone():
        return _search(config, plugins, target, compile_best, dimensions, progress)


def _search(
    config: Config,
    plugins: Plugins,
    target: Target,
    compile_best: int | None,
    dimensions: Sequence[Dimension],
    progress: Callable[[str], None],
) -> SearchResult:
    vocab_size, _ = vocabulary(config)
    try:
        count_parameters(config.model, vocab_size)
        candidates, pruned = enumerate_candidates(config, target, vocab_size, dimensions)
        considered = len(candidates) + pruned.total()
        if not candidates:
            raise SearchError(_nothing(config, target, pruned))
        own = _own(config, target, vocab_size, candidates)
        precision = short_dtype(resolve_dtype(config, plugins, target.device.platform).name)
        form = ClosedForm(config, target, vocab_size, precision)
        sketches = [form.sketch(candidate) for candidate in candidates]
    except ConfigError as error:
        raise SearchError(f"--search: its closed form cannot count this config: {error}") from error
    chosen = _choose(sketches, target.device.memory_bytes, pruned, 0.0 if compile_best is None else ERROR)
    notes = [NOT_SEARCHED, *_world_size_note(config, target)]
    if own is None:
        notes.append(f"the config's own setting is none for {target}")
    mine = [sketch for sketch in sketches if sketch.candidate is own]
    if compile_best is None:
        others = [Entry(sketch) for sketch in chosen if sketch.candidate is not own]
        tried = [*(Entry(sketch, own=True) for sketch in mine), *others]
    else:
        if mine and mine[0].memory * (1 - ERROR) > target.device.memory_bytes:
            size = mine.pop().memory
            notes.append(f"the config's own setting is too large by the closed form: {size_text(size)} a device")
        rest = [sketch for sketch in chosen if sketch.candidate is not own]
        tried = _Compiler(plugins, target, progress).best(mine, rest, sketches, compile_best)
    fitting = [e for e in tried if not e.refused and e.bytes <= target.device.memory_bytes]
    best = front(sorted(fitting, key=lambda e: e.roofline.serial), lambda e: e.point)
    return SearchResult(
        profile=config.profile.name,
        target=str(target),
        label=target.device.label,
        wiring=target.wiring,
        capacity=target.device.memory_bytes,
        batch_size=config.training.batch_size,
        length=config.data.sequence_length or config.model.max_position_embeddings,
        best=tuple(best),
        tried=tuple(best if compile_best is None else tried),
        own=next((entry for entry in tried if entry.own), None),
        considered=considered,
        pruned=dict(sorted((+pruned).items(), key=lambda item: (-item[1], item[0]))),
        differing=_differing(config, best[0].candidate) if best else {},
        compiling=compile_best is not None,
        notes=tuple(notes),
    )


def _choose(sketches: Sequence[Sketch], capacity: int, pruned: Counter[str], error: float) -> list[Sketch]:
    """Those that may fit and are not far too slow; counts the others."""
    fitting = [sketch for sketch in sketches if sketch.memory * (1 - error) <= capacity]
    pruned[SURELY_TOO_LARGE if error else TOO_LARGE] += len(sketches) - len(fitting)
    if not fitting:
        return []
    limit = SLOWEST * min(sketch.bounds.bound for sketch in fitting)
    quick = [sketch for sketch in fitting if sketch.bounds.bound <= limit]
    pruned[TOO_SLOW] += len(fitting) - len(quick)
    return sorted(quick, key=lambda s: (s.bounds.bound, s.bounds.serial, s.memory, s.candidate.key))


@dataclass
class _Compiler:
    plugins: Plugins
    target: Target
    progress: Callable[[str], None]
    _done: list[Entry] = field(default_factory=list)

    def best(self, own: Sequence[Sketch], chosen: Sequence[Sketch], every: Sequence[Sketch], count: int) -> list[Entry]:
        """Compiles the config's own setting and the front at equal distances, then what is nearest to it.

        Where none of them fits, the smallest of all are compiled, up to the first that does.
        """
        picked = list(own)
        for layer in fronts(chosen, lambda s: (s.memory, s.bounds.bound), count - len(own)):
            if len(picked) < count:
                picked += spread(layer, count - len(picked))
        for number, sketch in enumerate(picked, start=1):
            self._compile(sketch, f"{number} of {len(picked)}", own=sketch in own)
        seen = set(map(id, picked))
        smallest = sorted((s for s in every if id(s) not in seen), key=lambda s: (s.memory, s.bounds.bound))
        for sketch in smallest[:_RESCUES] if chosen else ():
            if any(not e.refused and e.bytes <= self.target.device.memory_bytes for e in self._done):
                break
            self._compile(sketch, "none fits; the smallest", own=False)
        return self._done

    def _compile(self, sketch: Sketch, which: str, *, own: bool) -> None:
        took = [entry.seconds for entry in self._done]
        guess = f", about {sum(took) / len(took):.0f} s" if took else ""
        self.progress(f"compiling {which}{guess}: {sketch.candidate}{' (the config as it is)' if own else ''}")
        start = time.perf_counter()
        try:
            plan = make_plan(sketch.candidate.config, self.plugins, self.target)
        except TargetError:  # no compiler: of the target, not of this setting
            raise
        except AptError as error:
            self._done.append(Entry(sketch, own=own, refused=str(error), seconds=time.perf_counter() - start))
            return
        self._done.append(_entry(sketch, own, plan, time.perf_counter() - start))


def _entry(sketch: Sketch, own: bool, plan: Plan, seconds: float) -> Entry:
    bounds = plan.bounds
    if not plan.flops.counted:  # the plan has the model's share; recomputation is the closed form's to know
        bounds = replace(bounds, compute=sketch.bounds.compute)
        bounds = replace(bounds, mfu=bounds.mfu * plan.bounds.bound / bounds.bound)
    return Entry(sketch, own, plan.allocated.total, bounds, plan.allocated.host, plan.flops.counted, seconds)


def _own(config: Config, target: Target, vocab_size: int, candidates: Sequence[Candidate]) -> Candidate | None:
    """The candidate that is the config as it is."""
    own = own_candidate(config, target, vocab_size)
    return next((c for c in candidates if own is not None and c.key == own.key), None)


def _world_size_note(config: Config, target: Target) -> list[str]:
    given = config.training.distributed.world_size
    if given in (None, target.count):
        return []
    return [f"world_size is {target.count}, the target's, in place of the config's {given}"]


def _nothing(config: Config, target: Target, pruned: Counter[str]) -> str:
    reason = pruned.most_common(1)[0][0] if pruned else "no dimension has a value"
    return (
        f"--search: no mesh shares {target.count:,} devices among {config.training.batch_size} sequences and this "
        f"model; most often: {reason}; change --target or training.batch_size"
    )


def _differing(config: Config, candidate: Candidate) -> dict[str, Any]:
    """Of a candidate's values those that change the config."""
    changed: dict[str, Any] = {}
    for key, value in candidate.values.items():
        given: Any = config
        for name in key.split("."):
            given = getattr(given, name)
        if given != value:
            changed[key] = value
    return changed
