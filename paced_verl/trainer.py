"""The paced trainer: verl's trainer, with a pass-rate sampler, a schedule and stored targets on the driver.

Order of a step (``docs/architecture.md``): the schedule says which stage it is and whether pass rates are due; the
sampler draws prompts; each row is told its stage, weight and stored target; verl rolls out, the teacher scores, verl
trains with :func:`paced_verl.loss.paced_loss`; the table learns from what came back. This module holds no maths.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
import transfer_queue as tq
from omegaconf import DictConfig, open_dict
from tensordict import TensorDict
from torch.utils.data import Dataset
from torchdata.stateful_dataloader import StatefulDataLoader
from transfer_queue import KVBatchMeta
from verl.single_controller.ray import ResourcePoolManager
from verl.trainer.ppo.utils import Role
from verl.trainer.ppo.v1 import PPOTrainerColocateAsync, PPOTrainerSeparateAsync, PPOTrainerSync, register_trainer
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.dataset.rl_dataset import collate_fn
from verl.utils.debug import marked_timer

from paced_verl import fields, resume
from paced_verl.checks import check, check_length, teacher_paths
from paced_verl.config import ConfigError
from paced_verl.estimate import correct_of_row, estimate_pass_rates
from paced_verl.health import EngineWatch
from paced_verl.instructions import row_instructions
from paced_verl.loss import METRIC_PREFIX, paced_loss
from paced_verl.passrate import PassRateTable
from paced_verl.schedule import Stage, refresh_due
from paced_verl.state import PacedState
from paced_verl.targets import Target, column, prompt_hash
from paced_verl.wiring import wire
from paced_verl.worker import PACED_WORKERS

POLL_SECONDS = 0.2  # verl looks for finished rollouts every 2 s, which is most of a short step
FINGERPRINT_PROMPTS = 64  # enough for another order to show; hashing millions of prompts would delay every start


class NumberedPrompts(Dataset):
    """verl's data set with each row's position in it: ``extra_info.index`` need not be there, or unique."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: int) -> dict[str, Any]:
        return {**self.dataset[position], fields.PROMPT: int(position)}

    def fingerprint(self) -> str:
        """Names the data set by prompts spread evenly over it, in their order: files of another one are noticed."""
        places = np.linspace(0, len(self) - 1, min(len(self), FINGERPRINT_PROMPTS), dtype=int)
        return prompt_hash([message for place in places.tolist() for message in self.dataset[place]["raw_prompt"]])


class PacedTrainer:
    """Mixin over verl's V1 trainers: everything that PACED adds on the driver."""

    base_mode: str
    """verl's name of the trainer below, whose settings ``trainer.v1.<base_mode>`` it reads."""

    def __init__(self, config: DictConfig):
        self.paced, verdicts = check(config, files=False)
        for verdict in verdicts:
            print(f"[paced] {verdict}", flush=True)
        wire(config, self.paced, self.base_mode)
        super().__init__(config)
        # Without a teacher pool verl must not start one; what it reads of distillation besides is set in _setup.
        self.use_teacher_policy = self.paced.teacher.backend == "server"
        self.replay_buffer.poll_interval = POLL_SECONDS
        self.stage: Stage | None = None
        self._student_n = config.actor_rollout_ref.rollout.n
        self._pending_metrics: dict[str, float] = {}
        self._step_totals: Counter[str] = Counter()

    # ------------------------------------------------------------------ set-up

    def _init_dataloader(self) -> None:
        super()._init_dataloader()
        self.schedule = self.paced.build_schedule(self.total_training_steps)
        self.prompts = NumberedPrompts(self.train_dataset)
        check_length(self.steps_per_epoch * self.config.trainer.total_epochs, self.total_training_steps)
        if changed := list(resume.problems(self.config, self.paced, self.schedule)):
            raise ConfigError("\n".join(changed))
        self._settings = resume.settings_of(self.config, self.paced, self.schedule)
        self.state = PacedState(
            self.paced,
            prompts=len(self.prompts),
            epoch_size=len(self.prompts) // self._gen_batch_size * self._gen_batch_size,  # no batch is cut short
            task_rewards=self._task_rewards,
            fingerprint=self.prompts.fingerprint(),
        )
        self.train_dataloader = self._new_dataloader()

    @property
    def _gen_batch_size(self) -> int:
        return self.config.data.get("gen_batch_size", None) or self.config.data.train_batch_size

    @property
    def _task_rewards(self) -> bool:
        return self.config.distillation.distillation_loss.use_task_rewards

    def _new_dataloader(self) -> StatefulDataLoader:
        # No worker processes: they would draw prompts many batches ahead of the weights.
        return StatefulDataLoader(
            self.prompts,
            batch_size=self._gen_batch_size,
            num_workers=0,
            drop_last=True,
            collate_fn=collate_fn,
            sampler=self.state.sampler,
        )

    def _init_resource_pool_mgr(self) -> None:
        super()._init_resource_pool_mgr()
        for role, worker in self.role_worker_mapping.items():
            if ours := PACED_WORKERS.get(_verl_worker(worker)):
                self.role_worker_mapping[role] = ray.remote(ours)
        if not self.use_teacher_policy:
            pools = self.resource_pool_manager.resource_pool_spec
            self.mapping.pop(Role.TeacherModel)
            self.resource_pool_manager = ResourcePoolManager(
                resource_pool_spec={name: pool for name, pool in pools.items() if name != "teacher_pool"},
                mapping=self.mapping,
            )

    def _setup(self) -> None:
        super()._setup()
        self.distillation_config = omega_conf_to_dataclass(self.config.distillation)
        teacher = self.paced.teacher
        if teacher.backend == "reference":
            (path,) = teacher_paths(self.config).values()
            self.actor_rollout_wg.init_teacher(path, teacher.topk)
            if self.global_steps > 0 and teacher.update != "frozen":
                self.actor_rollout_wg.load_teacher(str(self._paced_folder(resumed=True) / "teacher"))
        loss = partial(
            paced_loss,
            config=omega_conf_to_dataclass(self.config.actor_rollout_ref.actor),
            distillation_config=self.distillation_config,
            paced=self.paced,
            schedule=self.schedule,
        )
        self.actor_rollout_wg.set_paced_loss(loss)

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
                    self.state.targets.save(self.paced.targets.file)

    def _engines(self) -> dict[str, Any]:
        """Every Ray actor that the run cannot do without."""
        engines = {f"Trainer worker {i}": worker for i, worker in enumerate(self.actor_rollout_wg.workers)}
        replicas = [replica for manager in self._rollout_server_managers() for replica in manager.get_replicas()]
        engines |= {f"Student vLLM server {i}": replica._server_handle for i, replica in enumerate(replicas)}
        if self.teacher_model_manager is not None:
            for key, servers in self.teacher_model_manager.server_handles.items():
                engines |= {f"Teacher vLLM server {key}/{i}": server for i, server in enumerate(servers)}
        return engines

    # ------------------------------------------------------------------ stages and pass rates

    def on_train_begin(self) -> None:
        self._prepare(self.global_steps)  # asynchronous trainers draw their first prompts here
        super().on_train_begin()

    def on_step_begin(self) -> None:
        super().on_step_begin()
        self._prepare(self.global_steps)

    def _prepare(self, step: int) -> None:
        """Enter the step's stage and bring pass rates up to date, where that is due."""
        stage = self.schedule.at(step)
        if stage is not self.stage:
            self._enter(stage)
        settings = self.paced.pass_rate
        if refresh_due(step, self.state.last_refresh, settings.refresh, settings.every_steps, self.schedule):
            self.state.use_table(self._estimate(step), step)

    def on_step_end(self) -> None:
        super().on_step_end()
        if self.paced.pass_rate.at_end and self.global_steps >= self.total_training_steps:
            self._estimate(self.global_steps + 1)

    def _enter(self, stage: Stage) -> None:
        # Also where it is 1: verl restores the learning rate of a checkpoint, whatever actor.optim.lr says now.
        self.actor_rollout_wg.set_lr_factor(stage.lr_factor)
        n = self._responses_per_prompt(stage)
        rows = self.config.data.train_batch_size * n
        print(f"[paced] {stage}; {n} response(s) per prompt, {rows} rows per step", flush=True)
        self.stage = stage

    def _responses_per_prompt(self, stage: Stage) -> int:
        return self._student_n if stage.responses == "student" else 1

    def _estimate(self, step: int) -> PassRateTable:
        """Estimate pass rates with the weights ``step`` starts from; every estimate is kept beside the checkpoints."""
        started = time.monotonic()
        table = self.state.new_table()
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

    # ------------------------------------------------------------------ one step

    def _next_train_batch(self, num_prompts: int | None = None) -> TensorDict:
        batch = super()._next_train_batch(num_prompts)
        assert self.stage is not None
        prompts = np.asarray([int(prompt) for prompt in batch[fields.PROMPT]])
        n = self._responses_per_prompt(self.stage)
        instructions = row_instructions(
            prompts,
            stage=self.stage,
            step=self.global_steps,
            n=n,
            sampler=self.state.sampler,
            group_weights=self.paced.weight.source == "group",
            route=self.paced.route,
        )
        if self.stage.responses == "teacher":
            instructions[fields.TARGET] = [self._stored_target(prompt) for prompt in prompts.tolist()]
        for name, values in (instructions | {"__rollout_n__": [n] * len(prompts)}).items():
            tu.assign_non_tensor_stack(batch, name, values)
        return batch

    def _stored_target(self, prompt: int) -> list[int] | None:
        row = self.train_dataset[prompt]
        target = self.state.targets.get(prompt, row["raw_prompt"])
        text = column(row, self.paced.targets.column) if self.paced.targets.column else None
        if target is None and text is not None:
            ids = (*self.tokenizer.encode(text, add_special_tokens=False), self.tokenizer.eos_token_id)
            target = Target(ids, text, prompt_hash=prompt_hash(row["raw_prompt"]))
            self.state.targets.add(prompt, target)
        return None if target is None else list(target.token_ids)

    def step(self, metrics: dict, timing_raw: dict) -> KVBatchMeta:
        self._step_totals.clear()
        batch = super().step(metrics, timing_raw)
        self._update_teacher()
        asked = self._step_totals
        rate = asked["paced/teacher/seconds"] / max(asked["paced/teacher/tokens"], 1)
        asked["paced/teacher/seconds_saved"] = asked["paced/teacher/tokens_saved"] * rate
        metrics.update(asked)  # whole steps: verl averages over the updates of one
        return batch

    def _balance_batch(self, batch: KVBatchMeta, metrics: dict, *args: Any, **kwargs: Any) -> KVBatchMeta:
        # The first hook that sees a step's scored rows, and the last before verl adds padding rows to them.
        self._size_to(batch)
        self._learn_from(batch, metrics)
        return super()._balance_batch(batch, metrics, *args, **kwargs)

    def _size_to(self, batch: KVBatchMeta) -> None:
        """Tell verl how many responses a prompt of this batch has, for its mini-batches and their padding.

        An asynchronous trainer may mix the rows of two stages: those of a prompt with fewer then count for more, so
        that a prompt weighs the same whatever its number of responses.
        """
        sessions = [key.rsplit("_", 1)[0] for key in batch.keys]
        responses = Counter(session.rsplit("_", 1)[0] for session in set(sessions))
        n = max(responses.values())
        with open_dict(self.config):
            self.config.actor_rollout_ref.rollout.n = n
        factor = torch.tensor([[n / responses[session.rsplit("_", 1)[0]]] for session in sessions])
        if (factor != 1).any():
            rows = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=[fields.WEIGHT])
            weight = TensorDict({fields.WEIGHT: fields.per_row(rows[fields.WEIGHT]) * factor}, batch_size=len(batch))
            tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=weight)

    def _learn_from(self, batch: KVBatchMeta, metrics: dict) -> None:
        names = [fields.PROMPT, fields.STAGE, fields.WEIGHT, fields.TEACHER, "rm_scores", "responses", "extra_fields"]
        names.append("raw_prompt")
        rows = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=names)
        assert self.stage is not None
        prompts = fields.per_row(rows[fields.PROMPT]).view(-1).numpy()
        stages = fields.per_row(rows[fields.STAGE]).view(-1).tolist()
        by_student = np.array([self.schedule.stages[stage].responses == "student" for stage in stages])
        correct = np.asarray(correct_of_row(rows, self.paced.pass_rate.threshold))
        self._store_targets(rows, prompts, correct, ~by_student)
        if self.paced.pass_rate.from_training and by_student.any():
            self.state.table.observe(
                prompts[by_student], correct[by_student], np.ones(by_student.sum()), step=self.global_steps
            )
            self.state.sampler.update(prompts[by_student])
        errors = self.agent_loop_manager.pop_errors()
        if errors:
            print(
                f"[paced] {len(errors)} rollout(s) failed in step {self.global_steps}; the first: {errors[0]}",
                flush=True,
            )
        asked = dict(zip(fields.TEACHER_NAMES, fields.per_row(rows[fields.TEACHER]).sum(dim=0).tolist(), strict=True))
        self._step_totals.update(
            {
                "paced/teacher/tokens": asked["tokens"],
                "paced/teacher/tokens_saved": asked["tokens_saved"],
                "paced/teacher/seconds": asked["seconds"],
                "paced/teacher/skipped_rows": float((fields.per_row(rows[fields.WEIGHT]) == 0).sum()),
                "paced/teacher/no_context": asked["no_context"],
                "paced/targets/skipped": asked["gave_up"],
                "paced/rollout/failed": len(errors),
            }
        )
        metrics.update(
            {
                "paced/stage": self.stage.index + 1,
                "paced/targets/stored": len(self.state.targets),
                **self.state.sampler.metrics(self.global_steps),
                **self._pending_metrics,
            }
        )
        self._pending_metrics = {}

    def _store_targets(self, rows: TensorDict, prompts: np.ndarray, correct: np.ndarray, written: np.ndarray) -> None:
        """Keep the responses that a teacher has written."""
        raw_prompts, responses = list(rows["raw_prompt"]), rows["responses"].unbind()
        weight = fields.per_row(rows[fields.WEIGHT]).view(-1).tolist()
        gave_up = fields.per_row(rows[fields.TEACHER])[:, fields.TEACHER_NAMES.index("gave_up")].bool().tolist()
        for i in np.flatnonzero(written).tolist():
            prompt = int(prompts[i])
            if prompt not in self.state.targets and (gave_up[i] or weight[i] > 0):
                ids = () if gave_up[i] else tuple(responses[i].tolist())
                text = self.tokenizer.decode(ids, skip_special_tokens=True)
                messages = getattr(raw_prompts[i], "data", raw_prompts[i])
                self.state.targets.add(prompt, Target(ids, text, bool(correct[i]), prompt_hash(messages)))

    def _compute_old_log_prob(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        # Only a policy gradient reads them: pure distillation saves a forward pass over the batch.
        return super()._compute_old_log_prob(batch, metrics) if self._task_rewards else batch

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        batch = super()._compute_advantage(batch, metrics)
        if self.paced.route is None:
            return batch
        names = ["advantages", fields.TASK]
        rows = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=names)
        task = fields.per_row(rows[fields.TASK]).view(-1)
        advantages = torch.nested.as_nested_tensor(
            [row * factor for row, factor in zip(rows["advantages"].unbind(), task, strict=True)], layout=torch.jagged
        )
        routed = TensorDict({"advantages": advantages}, batch_size=len(batch))
        return tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=routed)

    def _update_actor(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        if self.paced.teacher.backend == "reference":
            batch = self._ask_reference_teacher(batch)
        batch = super()._update_actor(batch, metrics)
        sums = {name: metrics.pop(name) for name in list(metrics) if name.startswith(f"actor/{METRIC_PREFIX}/")}
        tokens = sums.pop(f"actor/{METRIC_PREFIX}/tokens")
        metrics[f"{METRIC_PREFIX}/tokens"] = tokens
        metrics.update({name.removeprefix("actor/"): total / max(tokens, 1.0) for name, total in sums.items()})
        return batch

    def _ask_reference_teacher(self, batch: KVBatchMeta) -> KVBatchMeta:
        started = time.monotonic()
        with marked_timer("teacher", self.timing_raw):
            answer: KVBatchMeta = self.actor_rollout_wg.compute_teacher(batch)
        self._step_totals["paced/teacher/seconds"] += time.monotonic() - started
        if batch.fields is not None:
            batch.fields = sorted({*batch.fields, *(answer.fields or [])})
        return batch

    def _update_teacher(self) -> None:
        teacher = self.paced.teacher
        if teacher.update == "ema":
            self.actor_rollout_wg.update_teacher(teacher.ema_decay)
        elif teacher.update == "every" and self.global_steps % (teacher.every_steps or 1) == 0:
            print(f"[paced] after step {self.global_steps} the teacher takes the student's weights", flush=True)
            self.actor_rollout_wg.update_teacher(0.0)

    # ------------------------------------------------------------------ checkpoints

    def _paced_folder(self, resumed: bool = False) -> Path:
        """Where a checkpoint's state of ours is: of this step, or of the one that the run has resumed from."""
        if resumed and self.config.trainer.resume_mode == "resume_path":
            return Path(self.config.trainer.resume_from_path) / "paced"
        return Path(self.config.trainer.default_local_dir) / f"global_step_{self.global_steps}" / "paced"

    def _save_checkpoint(self) -> None:
        folder = self._paced_folder()
        self.state.save(folder)
        resume.save(self._settings, folder)
        if self.paced.teacher.update != "frozen":
            self.actor_rollout_wg.save_teacher(str(folder / "teacher"))
        super()._save_checkpoint()  # last: it writes the file that makes a checkpoint the latest one

    def _load_checkpoint(self) -> None:
        resume.repair_tracker(Path(self.config.trainer.default_local_dir))
        super()._load_checkpoint()
        if self.global_steps == 0:
            return
        folder = self._paced_folder(resumed=True)
        if not folder.exists():
            print(f"[paced] {folder.parent} is a plain verl checkpoint: pass rates start anew.", flush=True)
            self.train_dataloader = self._new_dataloader()  # without the state of verl's own sampler
            return
        self.state.load(folder)
        # Now, not at the first draw as it would be: a refresh that is due comes before it, and fits the kernel anew.
        self.train_dataloader_it = iter(self.train_dataloader)


def _first_error(agent_loop_manager: Any) -> str | None:
    """What went wrong first in the rollouts, if their workers still answer."""
    try:
        return next(iter(agent_loop_manager.pop_errors()), None)
    except ray.exceptions.RayError as error:
        return f"an agent-loop worker died: {' '.join(str(error).split())}"


def _verl_worker(remote_class: Any) -> type:
    """The class that was given to ``ray.remote``."""
    return remote_class.__ray_metadata__.modified_class.__mro__[1]


@register_trainer("paced_sync")
class PacedTrainerSync(PacedTrainer, PPOTrainerSync):
    """PACED in verl's synchronous mode: rollouts and training take turns on the same GPUs."""

    base_mode = "sync"


@register_trainer("paced_colocate_async")
class PacedTrainerColocateAsync(PacedTrainer, PPOTrainerColocateAsync):
    """PACED with rollouts that go on in the next step where an update interrupts them."""

    base_mode = "colocate_async"


@register_trainer("paced_separate_async")
class PacedTrainerSeparateAsync(PacedTrainer, PPOTrainerSeparateAsync):
    """PACED with rollouts on GPUs of their own, while the trainer trains."""

    base_mode = "separate_async"

    def _setup(self) -> None:
        # verl 0.9.1 hands print's "flush" to its logger where hybrid_engine is off, which a logger that logs refuses.
        logging.getLogger(PPOTrainerSeparateAsync.__module__).setLevel(logging.WARNING)
        super()._setup()
