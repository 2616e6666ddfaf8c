"""The public trainer: `Trainer(model, data).train()` and `Trainer.from_config(config).train()`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import ml_collections
from flax import nnx

from apt_jax.core.config import Config, default_config, diff, to_config_dict, validate
from apt_jax.core.config.schema import DistributedConfig, ModelConfig, TrainingConfig
from apt_jax.core.configured import configured
from apt_jax.core.errors import USAGE_EXIT_CODE, AptError, ConfigError, unknown_name
from apt_jax.core.registry import Plugins, compare_records, load_plugins
from apt_jax.trainops.checkpoints.manager import CheckpointManager
from apt_jax.trainops.checkpoints.workdir import Workdir
from apt_jax.trainops.data.bundle import DataBundle, build_data
from apt_jax.trainops.distributed import watch
from apt_jax.trainops.distributed.peers import PeerError, current_peers
from apt_jax.trainops.engine.checks import check_config
from apt_jax.trainops.engine.context import RunContext
from apt_jax.trainops.engine.describe import describe_run
from apt_jax.trainops.engine.interrupt import StopSignal
from apt_jax.trainops.engine.loop import Divergence, EarlyStopping, LoopPlan, LoopResult, run_loop
from apt_jax.trainops.engine.runlog import RunLog
from apt_jax.trainops.engine.samples import draw_samples, local_model
from apt_jax.trainops.engine.setup import Setup, build_setup
from apt_jax.trainops.engine.state import TrainState
from apt_jax.trainops.eval.evaluate import evaluate
from apt_jax.trainops.monitoring import environment

if TYPE_CHECKING:
    from apt_jax.trainops.data.api import Source


class Trainer:
    """Trains a language model; every way of starting a run ends here.

        Trainer(APTModel(hidden_size=128), ["a text", "another"], max_steps=100).train()
        Trainer.from_config(load_profile("playground"), workdir="runs/a").train()

    After `train`, `model` holds the trained weights and `tokenizer` its tokenizer.
    """

    def __init__(
        self,
        model: nnx.Module | ModelConfig | None = None,
        train_dataset: str | Path | Sequence[str] | Source | None = None,
        eval_dataset: str | Path | Sequence[str] | Source | None = None,
        *,
        config: Config | ml_collections.ConfigDict | None = None,
        tokenizer: Any = None,
        workdir: str | Path | None = None,
        plugins: Plugins | None = None,
        distributed_config: Mapping[str, Any] | None = None,
        **training: Any,
    ):
        """Nothing is built, read or written before `train`.

        Args:
          model: a built model (trained from its present weights), a `ModelConfig`, or None: the config's.
          train_dataset: texts, a path or glob, or a `Source`; None: the config's data.
          eval_dataset: likewise; None: a share of the training documents is held out.
          config: everything else; default `default_config()`.
          tokenizer: fulfils `apt_jax.model.tokenization.Tokenizer`; None: by the config.
          workdir: checkpoints and records go there, and a run found there is continued; None: nothing
            is written.
          plugins: a loaded plugin set; None: loaded by the config.
          distributed_config: keys of `training.distributed`, e.g. `{"strategy": "hybrid", "pipeline_parallel": 4}`.
          **training: keys of the config's `training` section.

        Raises:
          ConfigError: an unknown key or a bad value.
        """
        self.config = _merge(config, model, training, distributed_config or {})
        self.model = model if isinstance(model, nnx.Module) else None
        self.tokenizer = tokenizer
        self.workdir = None if workdir is None else Path(workdir)
        self._plugins = plugins
        self._datasets = train_dataset, eval_dataset
        self._changes: list[str] = []

    @classmethod
    def from_config(
        cls,
        config: Config | ml_collections.ConfigDict,
        *,
        workdir: str | Path | None = None,
        plugins: Plugins | None = None,
    ) -> Trainer:
        """A trainer for a whole config, as from `load_profile`."""
        return cls(config=config, workdir=workdir, plugins=plugins)

    @property
    def plugins(self) -> Plugins:
        """The active plugins; loaded at first use."""
        if self._plugins is None:
            chosen = self.config.plugins
            self._plugins = load_plugins(enabled=chosen.enabled, disabled=chosen.disabled, plugins_dir=chosen.dir)
        return self._plugins

    def train(self, *, stop_at_step: int | None = None, accept_config_change: bool = False) -> Mapping[str, Any]:
        """Trains to `training.max_steps`, continuing the workdir's run if there is one.

        Ctrl-C or SIGTERM ends at the next step boundary with a checkpoint. Every process of a job (see
        `setup_distributed`) calls this alike; process 0 writes and shows.

        Args:
          stop_at_step: end after this step with a checkpoint, as if interrupted.
          accept_config_change: continue a workdir written by another config.

        Returns:
          The report: `status`, `final` metrics, `timing`, `traces`, and with a workdir the curves.

        Raises:
          AptError: whatever is wrong, in one line; nothing is left in the workdir if no step was made.
          PeerError: another process of the job was lost or failed.
        """
        peers = current_peers()
        given, self.config = self.config, configured(self.config, self.plugins)
        self._changes = diff(given, self.config)
        try:
            settings = {"workdir": str(self.workdir and self.workdir.absolute()), "stop_at_step": stop_at_step}
            peers.agree(
                "config",
                {**_shared_settings(self.config), "plugins": self.plugins.as_records(), **settings},
                "start every process with the same command, on hosts with the same files",
            )
            jax.device_count()  # brings up the devices of all processes at once, which may not wait for one another
            with peers.first_alone("workdir"):
                workdir = None if self.workdir is None else Workdir(self.workdir, writes=peers.is_first)
                check_config(self.config, self.plugins, own_model=self.model is not None)
                if workdir is not None and peers.is_first:
                    for change in workdir.check_config(self.config, accept_config_change):
                        print(f"config change: {change}")
            try:
                return self._run(workdir, stop_at_step)
            except BaseException as error:
                if workdir is not None and not workdir.begun:
                    workdir.rollback()
                if isinstance(error, jax.errors.JaxRuntimeError):
                    raise peers.explain(error) from error
                raise
        except BaseException as error:
            watch.report_failure(error)
            raise

    def _run(self, workdir: Workdir | None, stop_at_step: int | None) -> Mapping[str, Any]:
        config, plugins = self.config, self.plugins
        peers = current_peers()
        began_with = None if workdir is None else _data_fingerprint(workdir)
        # In a workdir the others find the tokenizer and the tokens; without one all make the same at once.
        with contextlib.nullcontext() if workdir is None else peers.first_alone("data"):
            data = build_data(
                config,
                plugins,
                workdir=None if workdir is None else workdir.path,
                sources=self._datasets,
                tokenizer=self.tokenizer,
                began_with=began_with,
            )
        seen = {"training data and their order": data.fingerprint, "tokenizer": data.tokenizer.fingerprint}
        peers.agree("data", seen, "give every process the same files")
        self.tokenizer = data.tokenizer
        setup = build_setup(config, plugins, data.tokenizer.vocab_size, self.model)
        env = environment()
        checkpoints = _open_checkpoints(config, workdir)
        try:
            training = config.training
            early = EarlyStopping(training.early_stopping_patience, training.early_stopping_min_delta)
            state, start, tokens = _first_state(setup, checkpoints, plugins, early)
            if workdir is not None:
                workdir.begin(config, env)
            peers.continues = workdir is not None
            run = RunContext(
                config, None if workdir is None else workdir.path, plugins.as_records(),
                setup.program.num_params, config.model.vocab_size or data.tokenizer.vocab_size, start,
            )  # fmt: skip
            log = RunLog(run, plugins, environment=env, dataset_stats=data.stats.to_dict(), tokens=tokens)
            if checkpoints:
                checkpoints.on_saved = log.checkpoint_saved
            lost = watch.current()
            if lost is not None:
                lost.on_end = [lambda verdict: log.event("failure", error=verdict)]
            try:
                return self._train(setup, state, data, log, checkpoints, early, stop_at_step)
            except jax.errors.JaxRuntimeError as error:
                explained = peers.explain(error)
                log.failed(explained)
                if explained is error:
                    raise
                checkpoints = None  # closing waits for all processes
                raise explained from error
            except PeerError as error:
                log.failed(error)
                checkpoints = None
                raise
            except BaseException as error:
                if checkpoints and isinstance(error, Divergence):
                    # What this process wrote with the weights that gave the loss would diverge again at once.
                    checkpoints.discard_from(max(start + 1, error.step - 1))
                log.failed(error)
                watch.report_failure(error)  # before closing, which waits for the others
                if workdir is not None and not log.latest and isinstance(error, AptError):
                    workdir.begun = error.exit_code != USAGE_EXIT_CODE  # found wrong while the step was traced
                raise
        finally:
            if checkpoints:
                checkpoints.close()

    def _train(
        self,
        setup: Setup,
        state: TrainState,
        data: DataBundle,
        log: RunLog,
        checkpoints: CheckpointManager | None,
        early: EarlyStopping,
        stop_at_step: int | None,
    ) -> Mapping[str, Any]:
        config, program, start = self.config, setup.program, log.run.start_step
        training = config.training
        last = training.max_steps
        log.begin(describe_run(config, setup, data, self.plugins, log.run))
        for change in self._changes:
            log.note(f"changed by a plugin: {change}")
        stop = min(last, last if stop_at_step is None else stop_at_step)
        if start >= stop or early.exhausted:
            log.note(f"nothing to do: {start} of {last} steps are done{', early stopping' * early.exhausted}")
            self.model = program.model(state.params)
            return log.leave("finished" if start >= last else "stopped")
        if start == 0:
            self._samples("before", 0, program.model(state.params), data, log)

        def score(current: TrainState) -> dict[str, float]:
            assert data.eval is not None
            return evaluate(program, current.params, data.eval, training.eval_steps)

        def save(step: int, current: TrainState, eval_loss: float | None, forced: bool) -> None:
            improved = eval_loss is not None and eval_loss == early.best and config.checkpoints.keep_best
            if checkpoints and (forced or improved or checkpoints.due(step)):
                meta = self._meta(data, step, early, log.tokens)
                checkpoints.save(step, program.saved_state(current), meta, eval_loss)

        began = time.perf_counter()
        plan = LoopPlan(
            start=start,
            stop=stop,
            last=last,
            steps_per_epoch=data.train.rows_per_epoch / training.batch_size,
            eval_interval=training.eval_interval,
        )
        feed, peers = program.feed, current_peers()
        batches = data.train.iterate(start, stop, feed.rows)
        peers.enter_loop(start)
        with batches, StopSignal(peers) as signal, jax.transfer_guard("disallow"):
            result = run_loop(
                program, state, batches, plan, log,
                evaluate=score if data.eval else None, early=early, save=save, stop=signal,
            )  # fmt: skip
        seconds = time.perf_counter() - began
        if checkpoints:
            checkpoints.wait()
        self.model = program.model(result.state.params)
        if result.step == last or result.reason == "early_stopping":
            self._samples("after", result.step, self.model, data, log)
        return log.finish(
            result.reason,
            final=_final(log, result),
            traces=program.traces.get("train_step"),
            timing={
                "train_seconds": seconds,
                "step_seconds": result.step_seconds,
                "host_seconds": result.host_seconds,
            },
        )

    def _samples(self, when: str, step: int, model: nnx.Module, data: DataBundle, log: RunLog) -> None:
        training = self.config.training
        if training.sample_tokens == 0:
            return
        whole = local_model(model)
        if whole is None:
            log.note(f"samples {when}: left out, the parameters of all processes are too large for one")
        elif current_peers().is_first:
            log.samples(when, step, draw_samples(whole, data, training))

    def _meta(self, data: DataBundle, step: int, early: EarlyStopping, tokens: float) -> dict[str, Any]:
        return {
            "step": step,
            "config": to_config_dict(self.config).to_dict(),
            "plugins": self.plugins.as_records(),
            "data_fingerprint": data.fingerprint,
            "early_stopping": early.as_dict(),
            "tokens": tokens,
        }


def _merge(
    config: Config | ml_collections.ConfigDict | None,
    model: object,
    training: Mapping[str, Any],
    distributed: Mapping[str, Any],
) -> Config:
    """The config with the model's own section and the keyword arguments in place."""
    if config is None:
        config = default_config()
    merged = config if isinstance(config, Config) else validate(config, source="config")
    if isinstance(model, ModelConfig):
        merged = replace(merged, model=model)
    elif isinstance(model, nnx.Module):
        own = getattr(model, "config", merged.model)
        merged = replace(merged, model=replace(own, vocab_size=getattr(model, "vocab_size", own.vocab_size)))
    fields = TrainingConfig.__dataclass_fields__
    for key in training:
        if key not in fields:
            raise ConfigError(f"Trainer: {unknown_name('argument', key, fields)}")
    sizes = DistributedConfig.__dataclass_fields__
    for key in distributed:
        if key not in sizes:
            raise ConfigError(f"Trainer: distributed_config: {unknown_name('key', key, sizes)}")
    training = {**training, **{f"distributed.{key}": value for key, value in distributed.items()}}
    if not training:
        return merged
    changed = to_config_dict(merged)
    changed.update_from_flattened_dict({f"training.{key}": value for key, value in training.items()})
    return validate(changed, source="Trainer")


def _shared_settings(config: Config) -> dict[str, Any]:
    """The keys that must be alike in all processes: all but what only process 0 uses."""
    flat = to_config_dict(config).to_dict()
    return {
        f"{section}.{key}": value
        for section, values in flat.items()
        if section not in ("profile", "monitoring") and isinstance(values, dict)
        for key, value in values.items()
    }


def _open_checkpoints(config: Config, workdir: Workdir | None) -> CheckpointManager | None:
    if workdir is None:
        return None
    chosen = config.checkpoints
    return CheckpointManager(
        workdir.checkpoints,
        chosen.save_interval,
        chosen.keep_last_n,
        keep_best=chosen.keep_best,
        async_save=chosen.async_save,
    )


def _data_fingerprint(workdir: Workdir) -> str | None:
    """Of the data the run in `workdir` began with; None if it has no checkpoint."""
    if not workdir.checkpoints.is_dir():
        return None
    manager = CheckpointManager(workdir.checkpoints, read_only=True)
    try:
        return None if manager.latest_step() is None else manager.meta()["data_fingerprint"]
    finally:
        manager.close()


def _first_state(
    setup: Setup,
    checkpoints: CheckpointManager | None,
    plugins: Plugins,
    early: EarlyStopping,
) -> tuple[TrainState, int, float]:
    """The newest checkpoint, or fresh parameters; the finished steps, and the tokens they read."""
    program = setup.program
    if checkpoints is None or checkpoints.latest_step() is None:
        return program.init_state(setup.init_params()), 0, 0.0
    restored = checkpoints.restore(program.abstract_saved_state())
    early.restore(restored.meta["early_stopping"])
    changes = compare_records(restored.meta["plugins"], plugins.as_records())
    for change in changes if current_peers().is_first else ():
        print(f"plugin change: {change}")
    return program.loaded_state(restored.state), int(restored.state.step), float(restored.meta["tokens"])


def _final(log: RunLog, result: LoopResult) -> dict[str, float]:
    """The last training metrics, and those of the last evaluation."""
    evaluations = result.evaluations[-1][1] if result.evaluations else {}
    return {**log.latest, **evaluations}
