"""The paced trainer: verl's trainer, with a pass-rate sampler, a schedule and stored targets on the driver.

Order of a step (``docs/architecture.md``): the schedule says which stage it is and whether pass rates are due; the
sampler draws prompts; each row is told its stage, weight and stored target; verl rolls out, the teacher scores, verl
trains with :func:`paced_verl.loss.paced_loss`; the table learns from what came back. This module holds no maths.
"""

from __future__ import annotations

import dataclasses
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import transfer_queue as tq
from omegaconf import DictConfig, open_dict
from tensordict import TensorDict
from torch.utils.data import Dataset
from torchdata.stateful_dataloader import StatefulDataLoader
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1 import PPOTrainerSync, register_trainer
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.dataset.rl_dataset import collate_fn
from verl.workers.engine_workers import ActorRolloutRefWorker

from paced_verl import fields
from paced_verl import kernel as kernels
from paced_verl.checks import check, check_length
from paced_verl.estimate import correct_of_row, estimate_pass_rates
from paced_verl.health import EngineWatch
from paced_verl.loss import METRIC_PREFIX, paced_loss
from paced_verl.passrate import PassRateTable
from paced_verl.sampler import PassRateSampler
from paced_verl.schedule import Stage, refresh_due
from paced_verl.targets import Target, TargetStore, column, prompt_hash
from paced_verl.worker import PacedActorRolloutRefWorker

POLL_SECONDS = 0.2  # verl looks for finished rollouts every 2 s, which is most of a short step


class NumberedPrompts(Dataset):
    """verl's data set with each row's position in it: ``extra_info.index`` need not be there, or unique."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: int) -> dict[str, Any]:
        return {**self.dataset[position], fields.PROMPT: int(position)}


class PacedTrainer:
    """Mixin over verl's V1 trainers: everything that PACED adds on the driver."""

    base_mode: str
    """verl's name of the trainer below, whose settings ``trainer.v1.<base_mode>`` it reads."""

    def __init__(self, config: DictConfig):
        self.paced = check(config)
        with open_dict(config):
            config.trainer.v1.trainer_mode = self.base_mode
            if config.distillation.distillation_loss.use_task_rewards:
                # verl's log-probabilities overwrite the logits in their backward unless an entropy needs them, too;
                # the divergence reads them again in its own.
                config.actor_rollout_ref.actor.calculate_entropy = True
        super().__init__(config)
        self.replay_buffer.poll_interval = POLL_SECONDS
        self.stage: Stage | None = None
        self.last_refresh: int | None = None
        self.targets = TargetStore()
        self._student_n = config.actor_rollout_ref.rollout.n
        self._pending_metrics: dict[str, float] = {}

    # ------------------------------------------------------------------ set-up

    def _init_dataloader(self) -> None:
        super()._init_dataloader()
        self.schedule = self.paced.build_schedule(self.total_training_steps)
        self.prompts = NumberedPrompts(self.train_dataset)
        check_length(self.steps_per_epoch * self.config.trainer.total_epochs, self.total_training_steps)
        self.table = PassRateTable(len(self.prompts), decay=self.paced.pass_rate.decay)
        self.sampler = PassRateSampler(
            self.table,
            self.paced.weight.to_kernel(),
            power=self.paced.sampler.power,
            explore=self.paced.sampler.explore,
            skip_zero_weight=self.paced.sampler.skip_zero_weight,
            seed=self.paced.sampler.seed,
            epoch_size=len(self.prompts) // self._gen_batch_size * self._gen_batch_size,  # no batch is cut short
        )
        self.train_dataloader = self._new_dataloader()
        if self.paced.pass_rate.file is not None:
            self._use_table(PassRateTable.load(self.paced.pass_rate.file, expected_size=len(self.prompts)))
            self.last_refresh = 1
        if self.paced.targets.file is not None and Path(self.paced.targets.file).exists():
            self.targets.load(self.paced.targets.file)

    @property
    def _gen_batch_size(self) -> int:
        return self.config.data.get("gen_batch_size", None) or self.config.data.train_batch_size

    def _new_dataloader(self) -> StatefulDataLoader:
        # No worker processes: they would draw prompts many batches ahead of the weights.
        return StatefulDataLoader(
            self.prompts,
            batch_size=self._gen_batch_size,
            num_workers=0,
            drop_last=True,
            collate_fn=collate_fn,
            sampler=self.sampler,
        )

    def _init_resource_pool_mgr(self) -> None:
        super()._init_resource_pool_mgr()
        for role, worker in self.role_worker_mapping.items():
            if worker.__ray_metadata__.modified_class.__mro__[1] is ActorRolloutRefWorker:
                self.role_worker_mapping[role] = ray.remote(PacedActorRolloutRefWorker)

    def _setup(self) -> None:
        super()._setup()
        actor_config = omega_conf_to_dataclass(self.config.actor_rollout_ref.actor)
        self.actor_rollout_wg.set_loss_fn(
            partial(
                paced_loss, config=actor_config, distillation_config=self.distillation_config, schedule=self.schedule
            )
        )

    def fit(self, agent_loop_manager: Any) -> None:
        with EngineWatch(self._engines()) as watch:
            try:
                super().fit(agent_loop_manager)
            except (Exception, KeyboardInterrupt) as error:
                cause = watch.find_dead() or _first_error(agent_loop_manager)
                if cause is None:
                    raise
                raise RuntimeError(f"The run ended at step {self.global_steps}: {cause}") from error
            finally:
                if self.paced.targets.file is not None:
                    self.targets.save(self.paced.targets.file)

    def _engines(self) -> dict[str, Any]:
        """Every Ray actor that the run cannot do without."""
        engines = {f"Trainer worker {i}": worker for i, worker in enumerate(self.actor_rollout_wg.workers)}
        for replica, server in enumerate(r._server_handle for r in self.llm_server_manager.get_replicas()):
            engines[f"Student vLLM server {replica}"] = server
        for key, servers in self.teacher_model_manager.server_handles.items():
            engines.update({f"Teacher vLLM server {key}/{i}": server for i, server in enumerate(servers)})
        return engines

    # ------------------------------------------------------------------ stages and pass rates

    def on_step_begin(self) -> None:
        super().on_step_begin()
        stage = self.schedule.at(self.global_steps)
        if stage is not self.stage:
            self._enter(stage)
        settings = self.paced.pass_rate
        if refresh_due(self.global_steps, self.last_refresh, settings.refresh, settings.every_steps, self.schedule):
            self._use_table(self._estimate(self.global_steps))
            self.last_refresh = self.global_steps

    def on_step_end(self) -> None:
        super().on_step_end()
        if self.paced.pass_rate.at_end and self.global_steps >= self.total_training_steps:
            self._estimate(self.global_steps + 1)

    def _enter(self, stage: Stage) -> None:
        # verl reads rollout.n on the driver for the mini-batch and its padding: one row a prompt needs no n of them.
        n = self._student_n if stage.responses == "student" else 1
        with open_dict(self.config):
            self.config.actor_rollout_ref.rollout.n = n
        if any(other.lr_factor != 1.0 for other in self.schedule.stages):
            self.actor_rollout_wg.set_lr_factor(stage.lr_factor)
        rows = self.config.data.train_batch_size * n
        print(f"[paced] {stage}; {n} response(s) per prompt, {rows} rows per step", flush=True)
        self.stage = stage

    def _estimate(self, step: int) -> PassRateTable:
        """Estimate pass rates with the weights ``step`` starts from; every estimate is kept beside the checkpoints."""
        started = time.monotonic()
        table = PassRateTable(len(self.prompts), decay=self.paced.pass_rate.decay)
        estimate_pass_rates(
            table,
            self.prompts,
            samples=self.paced.pass_rate.samples,
            temperature=self.paced.pass_rate.temperature,
            threshold=self.paced.pass_rate.threshold,
            chunk=max(self.config.data.train_batch_size, 256),
            step=step,
            agent_loop_manager=self.agent_loop_manager,
            replay_buffer=self.replay_buffer,
        )
        history = Path(self.config.trainer.default_local_dir) / "paced" / "pass_rates"
        history.mkdir(parents=True, exist_ok=True)
        table.save(history / f"after_step_{step - 1}.parquet")
        seconds = time.monotonic() - started
        self._pending_metrics["paced/pass_rate/seconds"] = seconds
        summary = table.summary()
        print(
            f"[paced] pass rates before step {step}: mean {summary['mean']:.3f}; "
            f"{summary['low']:.0%} below .2, {summary['frontier']:.0%} between, {summary['high']:.0%} above .8 "
            f"({len(table)} prompts × {self.paced.pass_rate.samples} samples in {seconds:.0f} s)",
            flush=True,
        )
        errors = self.agent_loop_manager.pop_errors()
        if errors:
            print(f"[paced] {len(errors)} rollout(s) of the estimate failed; the first: {errors[0]}", flush=True)
        return table

    def _use_table(self, table: PassRateTable) -> None:
        """Weigh by this table from now on, with what the configuration leaves to the data fitted to it."""
        kernel = self.sampler.kernel
        if self.paced.weight.fit == "moments":
            try:
                alpha, beta = kernels.fit_exponents(table.successes, table.samples)
                kernel = dataclasses.replace(kernel, alpha=alpha, beta=beta)
            except ValueError as error:
                if self.last_refresh is None:
                    raise
                print(f"[paced] keeping α={kernel.alpha:.3g}, β={kernel.beta:.3g}: {error}", flush=True)
        if self.paced.weight.estimate == "posterior" and self.paced.weight.prior is None:
            kernel = dataclasses.replace(kernel, prior=kernels.fit_prior(table.successes, table.samples))
        self.table = table
        self.sampler.refresh(kernel, table)

    # ------------------------------------------------------------------ one step

    def _next_train_batch(self, num_prompts: int | None = None) -> TensorDict:
        batch = super()._next_train_batch(num_prompts)
        assert self.stage is not None
        prompts = [int(prompt) for prompt in batch[fields.PROMPT]]
        n = self.config.actor_rollout_ref.rollout.n
        instructions: dict[str, list[Any]] = {
            fields.STAGE: [self.stage.index] * len(prompts),
            fields.RESPONSES: [self.stage.responses] * len(prompts),
            fields.WEIGHT: self.sampler.loss_weights(np.asarray(prompts)).tolist(),
            fields.TARGET: [None] * len(prompts),
            "__rollout_n__": [n] * len(prompts),
        }
        if self.stage.responses == "teacher":
            instructions[fields.TARGET] = [self._stored_target(prompt) for prompt in prompts]
        for name, values in instructions.items():
            tu.assign_non_tensor_stack(batch, name, values)
        return batch

    def _stored_target(self, prompt: int) -> list[int] | None:
        row = self.train_dataset[prompt]
        target = self.targets.get(prompt, row["raw_prompt"])
        text = column(row, self.paced.targets.column) if self.paced.targets.column else None
        if target is None and text is not None:
            ids = (*self.tokenizer.encode(text, add_special_tokens=False), self.tokenizer.eos_token_id)
            target = Target(ids, text, prompt_hash=prompt_hash(row["raw_prompt"]))
            self.targets.add(prompt, target)
        return None if target is None else list(target.token_ids)

    def _balance_batch(self, batch: KVBatchMeta, metrics: dict, *args: Any, **kwargs: Any) -> KVBatchMeta:
        # The first hook that sees a step's scored rows, and the last before verl adds padding rows to them.
        self._learn_from(batch, metrics)
        return super()._balance_batch(batch, metrics, *args, **kwargs)

    def _learn_from(self, batch: KVBatchMeta, metrics: dict) -> None:
        names = [fields.PROMPT, fields.WEIGHT, fields.TEACHER, "rm_scores", "responses", "extra_fields", "raw_prompt"]
        rows = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=names)
        assert self.stage is not None
        prompts = fields.per_row(rows[fields.PROMPT]).view(-1).numpy()
        correct = np.asarray(correct_of_row(rows, self.paced.pass_rate.threshold))
        tokens, seconds, skipped = fields.per_row(rows[fields.TEACHER]).sum(dim=0).tolist()
        if self.stage.responses == "teacher":
            self._store_targets(rows, prompts, correct)
        elif self.paced.pass_rate.from_training:
            self.table.observe(prompts, correct, np.ones_like(correct), step=self.global_steps)
            self.sampler.update(prompts)
        errors = self.agent_loop_manager.pop_errors()
        if errors:
            print(
                f"[paced] {len(errors)} rollout(s) failed in step {self.global_steps}; the first: {errors[0]}",
                flush=True,
            )
        metrics.update(
            {
                "paced/stage": self.stage.index + 1,
                "paced/teacher/tokens": tokens,
                "paced/teacher/seconds": seconds,
                "paced/teacher/skipped_rows": float((fields.per_row(rows[fields.WEIGHT]) == 0).sum()),
                "paced/targets/skipped": skipped,
                "paced/targets/stored": len(self.targets),
                "paced/rollout/failed": len(errors),
                **self.sampler.metrics(self.global_steps),
                **self._pending_metrics,
            }
        )
        self._pending_metrics = {}

    def _store_targets(self, rows: TensorDict, prompts: np.ndarray, correct: np.ndarray) -> None:
        raw_prompts = list(rows["raw_prompt"])
        weight = fields.per_row(rows[fields.WEIGHT]).view(-1).tolist()
        gave_up = fields.per_row(rows[fields.TEACHER])[:, 2].bool().tolist()
        for i, (prompt, tokens) in enumerate(zip(prompts.tolist(), rows["responses"].unbind(), strict=True)):
            if prompt not in self.targets and (gave_up[i] or weight[i] > 0):
                ids = () if gave_up[i] else tuple(tokens.tolist())
                text = self.tokenizer.decode(ids, skip_special_tokens=True)
                messages = getattr(raw_prompts[i], "data", raw_prompts[i])
                self.targets.add(prompt, Target(ids, text, bool(correct[i]), prompt_hash(messages)))

    def _compute_old_log_prob(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        # Only a policy gradient reads them: pure distillation saves a forward pass over the batch.
        if self.distillation_config.distillation_loss.use_task_rewards:
            return super()._compute_old_log_prob(batch, metrics)
        return batch

    def _update_actor(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        batch = super()._update_actor(batch, metrics)
        sums = {name: metrics.pop(name) for name in list(metrics) if name.startswith(f"actor/{METRIC_PREFIX}/")}
        tokens = sums.pop(f"actor/{METRIC_PREFIX}/tokens")
        metrics[f"{METRIC_PREFIX}/tokens"] = tokens
        metrics.update({name.removeprefix("actor/"): total / max(tokens, 1.0) for name, total in sums.items()})
        return batch

    # ------------------------------------------------------------------ checkpoints

    def _paced_folder(self) -> Path:
        return Path(self.config.trainer.default_local_dir) / f"global_step_{self.global_steps}" / "paced"

    def _save_checkpoint(self) -> None:
        folder = self._paced_folder()
        folder.mkdir(parents=True, exist_ok=True)
        self.table.save(folder / "pass_rates.parquet")
        self.targets.save(folder / "targets.parquet")
        # The sampler's position and fitted kernel are in verl's data.pt, as its dataloader's state.
        (folder / "state.json").write_text(json.dumps({"last_refresh": self.last_refresh}))
        super()._save_checkpoint()  # last: it writes the file that makes a checkpoint the latest one

    def _load_checkpoint(self) -> None:
        super()._load_checkpoint()
        if self.global_steps == 0:
            return
        folder = self._paced_folder()
        if self.config.trainer.resume_mode == "resume_path":
            folder = Path(self.config.trainer.resume_from_path) / "paced"
        if not folder.exists():
            print(f"[paced] {folder.parent} is a plain verl checkpoint: pass rates start anew.", flush=True)
            self.train_dataloader = self._new_dataloader()  # without the state of verl's own sampler
            return
        self.last_refresh = json.loads((folder / "state.json").read_text())["last_refresh"]
        self.table = PassRateTable.load(folder / "pass_rates.parquet", expected_size=len(self.prompts))
        self.targets.load(folder / "targets.parquet")
        self.sampler.refresh(table=self.table)
        # Now, not at the first draw as it would be: a refresh that is due comes before it, and fits the kernel anew.
        self.train_dataloader_it = iter(self.train_dataloader)


def _first_error(agent_loop_manager: Any) -> str | None:
    """What went wrong first in the rollouts, if their workers still answer."""
    try:
        return next(iter(agent_loop_manager.pop_errors()), None)
    except ray.exceptions.RayError as error:
        return f"an agent-loop worker died: {' '.join(str(error).split())}"


@register_trainer("paced_sync")
class PacedTrainerSync(PacedTrainer, PPOTrainerSync):
    """PACED in verl's synchronous mode: rollouts and training take turns on the same GPUs."""

    base_mode = "sync"
