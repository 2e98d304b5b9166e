"""The paced trainer: verl's trainer, with a pass-rate sampler, a schedule and stored targets on the driver.

Order of a step (``docs/architecture.md``): the schedule says which stage it is and whether pass rates are due; the
sampler draws prompts; each row is told its stage, weight and stored target; verl rolls out, the teacher scores, verl
trains with :func:`paced_verl.training.loss.paced_loss`; the table learns from what came back.
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

from paced_verl import fields
from paced_verl.checks import check, check_length, resume
from paced_verl.config import ConfigError
from paced_verl.config.wiring import teacher_paths, wire
from paced_verl.fingerprint import fingerprint_of, prompt_hash, tokenizer_hash
from paced_verl.pacing.instructions import row_instructions
from paced_verl.pacing.pass_rates import PassRateTable
from paced_verl.pacing.schedule import Stage, refresh_due
from paced_verl.run.outcomes import RefillLimit, Report
from paced_verl.run.sessions import sessions
from paced_verl.run.state import PacedState
from paced_verl.targets.store import Target, response_in
from paced_verl.training.estimate import correct_of_row, estimate_pass_rates
from paced_verl.training.health import EngineWatch
from paced_verl.training.loss import METRIC_PREFIX, paced_loss
from paced_verl.training.worker import PACED_WORKERS

POLL_SECONDS = 0.2  # verl looks for finished rollouts every 2 s, which is most of a short step


class NumberedPrompts(Dataset):
    """verl's data set with each row's position in it: ``extra_info.index`` need not be there, or unique."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: int) -> dict[str, Any]:
        return {**self.dataset[position], fields.PROMPT: int(position)}


class RefillError(RuntimeError):
    """verl would replace prompts for ever."""


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
        self._report = Report()
        self._refills = self._refill_limit()

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
            fingerprint=fingerprint_of(self.train_dataset),
            tokenizer=tokenizer_hash(self.tokenizer),
        )
        student = omega_conf_to_dataclass(self.config.actor_rollout_ref.model).hf_config
        self.state.targets.check(self.train_dataset, student.get_text_config().vocab_size)
        self.train_dataloader = self._new_dataloader()

    @property
    def _gen_batch_size(self) -> int:
        return self.config.data.get("gen_batch_size", None) or self.config.data.train_batch_size

    @property
    def _task_rewards(self) -> bool:
        return self.config.distillation.distillation_loss.use_task_rewards

    @property
    def _filters_groups(self) -> bool:
        return bool((self.config.algorithm.get("filter_groups") or {}).get("enable"))

    def _refill_limit(self) -> RefillLimit:
        filter_groups = self.config.algorithm.get("filter_groups") or {}
        warmup = self.config.trainer.v1.get(self.base_mode, {}).get("num_warmup_batches", 0)
        return RefillLimit.of(
            self.config.data.train_batch_size,
            batches_in_flight=max(1 + warmup, filter_groups.get("max_inflight_gen_batches", 1)),
            gen_batches=filter_groups.get("max_num_gen_batches", 0),
        )

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
        loops = {f"Agent-loop worker {i}": worker for i, worker in enumerate(agent_loop_manager.agent_loop_workers)}
        with EngineWatch(self._engines() | loops, self._addresses(), prompt=loops) as watch:
            try:
                super().fit(agent_loop_manager)
            except (Exception, KeyboardInterrupt) as error:
                cause = watch.find_dead() or self._cause(error)
                if cause is None:
                    raise
                raise RuntimeError(f"The run ended at step {self.global_steps}: {cause}") from error
            finally:
                if self.paced.targets.file is not None:
                    self.state.targets.save(self.paced.targets.file)

    def _engines(self) -> dict[str, Any]:
        """Every engine that the run cannot do without, as Ray actors."""
        engines = {f"Trainer worker {i}": worker for i, worker in enumerate(self.actor_rollout_wg.workers)}
        engines |= {f"Student vLLM server {i}": replica._server_handle for i, replica in enumerate(self._replicas())}
        if self.teacher_model_manager is not None:
            for key, servers in self.teacher_model_manager.server_handles.items():
                engines |= {f"Teacher vLLM server {key}/{i}": server for i, server in enumerate(servers)}
        return engines

    def _addresses(self) -> dict[str, str]:
        """Where the servers among them serve HTTP."""
        addresses = {f"Student vLLM server {i}": replica._server_address for i, replica in enumerate(self._replicas())}
        if self.teacher_model_manager is not None:
            for key, servers in self.teacher_model_manager.server_addresses.items():
                addresses |= {f"Teacher vLLM server {key}/{i}": server for i, server in enumerate(servers)}
        return addresses

    def _replicas(self) -> list[Any]:
        return [replica for manager in self._rollout_server_managers() for replica in manager.get_replicas()]

    # ------------------------------------------------------------------ rollouts that fail

    def _hear(self) -> None:
        """Take up what the agent-loop workers have seen since they were last asked."""
        news = self.agent_loop_manager.pop_report()
        self._refills.observe(news.outcomes)
        self._report.add([news])

    def _add_prompts_to_generate(self, num_prompts: int) -> int:
        # This is how verl replaces prompts that failed or were dropped, as often as it takes.
        self._hear()
        if problem := self._refills.problem():
            raise RefillError(problem)
        return super()._add_prompts_to_generate(num_prompts)

    def _cause(self, error: BaseException) -> str | None:
        """What the loop died of, if the error does not say: what went wrong first in rollouts, if workers answer."""
        if isinstance(error, RefillError):
            return str(error)
        try:
            self._hear()
        except ray.exceptions.RayError as death:
            return f"an agent-loop worker died: {' '.join(str(death).split())}"
        return next(iter(self._report.errors), None)

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
        self._hear()
        if errors := self._report.errors:
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
            route=self.paced.route.to_route() if self.paced.route else None,
        )
        if self.stage.responses == "teacher":
            instructions[fields.TARGET] = [self._stored_target(prompt) for prompt in prompts.tolist()]
        for name, values in (instructions | {"__rollout_n__": [n] * len(prompts)}).items():
            tu.assign_non_tensor_stack(batch, name, values)
        return batch

    def _stored_target(self, prompt: int) -> list[int] | None:
        row = self.train_dataset[prompt]
        target = self.state.targets.get(prompt, row["raw_prompt"])
        text = response_in(row, self.paced.targets.column) if self.paced.targets.column else None
        if text is not None and not self.state.targets.has_response(prompt):
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
        responses = sessions(batch.keys).responses()
        n = int(responses.max())
        with open_dict(self.config):
            self.config.actor_rollout_ref.rollout.n = n
        factor = torch.tensor(n / responses, dtype=torch.float32)[:, None]
        if (factor != 1).any():
            rows = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=[fields.WEIGHT])
            weight = TensorDict({fields.WEIGHT: fields.per_row(rows[fields.WEIGHT]) * factor}, batch_size=len(batch))
            tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=weight)

    def _learn_from(self, batch: KVBatchMeta, metrics: dict) -> None:
        names = [fields.PROMPT, fields.STAGE, fields.WEIGHT, fields.TASK, fields.TEACHER]
        names += ["rm_scores", "responses", "extra_fields", "raw_prompt"]
        rows = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=names)
        assert self.stage is not None
        prompts = fields.per_row(rows[fields.PROMPT]).view(-1).numpy()
        stages = fields.per_row(rows[fields.STAGE]).view(-1).tolist()
        by_student = np.array([self.schedule.stages[stage].responses == "student" for stage in stages])
        correct = np.asarray(correct_of_row(rows, self.paced.pass_rate.threshold))
        self._store_targets(rows, prompts, correct, ~by_student)
        self._hear()
        report, self._report = self._report, Report()
        last = sessions(batch.keys).last
        if self.paced.pass_rate.from_training:
            rollouts = last & by_student
            self._observe(report, prompts[rollouts], correct[rollouts])
        if errors := report.errors:
            print(
                f"[paced] {len(errors)} rollout(s) failed in step {self.global_steps}; the first: {errors[0]}",
                flush=True,
            )
        teacher = fields.per_row(rows[fields.TEACHER])[last].sum(dim=0).tolist()
        asked = dict(zip(fields.TEACHER_NAMES, teacher, strict=True))
        weight = fields.per_row(rows[fields.WEIGHT]).view(-1)[last]
        self._step_totals.update(
            {
                "paced/teacher/tokens": asked["tokens"],
                "paced/teacher/tokens_saved": asked["tokens_saved"],
                "paced/teacher/seconds": asked["seconds"],
                "paced/teacher/tokens_dropped": report.dropped_tokens,
                "paced/teacher/skipped_rows": float((weight == 0).sum()),
                "paced/teacher/no_context": asked["no_context"],
                "paced/targets/skipped": asked["gave_up"],
                "paced/rollout/failed": len(errors),
            }
        )
        if self.paced.route is not None:
            task = fields.per_row(rows[fields.TASK]).view(-1)[last]
            self._step_totals["paced/route/no_task"] += int((task == 0).sum())
            self._step_totals["paced/route/self_taught"] += int(asked["self_taught"])
        metrics.update(
            {
                "paced/stage": self.stage.index + 1,
                "paced/targets/stored": len(self.state.targets),
                **self.state.sampler.metrics(self.global_steps),
                **self._pending_metrics,
            }
        )
        self._pending_metrics = {}

    def _observe(self, report: Report, prompts: np.ndarray, correct: np.ndarray) -> None:
        """Count a step's rollouts; under DAPO's filter those of dropped groups, too, of which no row is left."""
        samples = np.ones(len(prompts))
        if self._filters_groups:
            seen = [(seen.prompt, seen.successes, seen.responses) for seen in report.outcomes if seen.responses]
            prompts, correct, samples = np.array(seen, np.int64).reshape(-1, 3).T
        if prompts.size:
            self.state.table.observe(prompts, correct, samples, step=self.global_steps)
            self.state.sampler.update(prompts)

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
        advantages = fields.scaled(rows["advantages"], fields.per_row(rows[fields.TASK]).view(-1))
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
