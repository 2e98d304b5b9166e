"""The paced trainer: verl's trainer, with a pass-rate sampler, a schedule and stored targets on the driver.

Order of a step (``docs/architecture.md``): the schedule says which stage it is and whether pass rates are due; the
sampler draws prompts; each row is told its stage, weight and stored target; verl rolls out, the teacher scores, verl
trains with :func:`paced_verl.training.loss.paced_loss`; the table learns from what came back.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
import torch
import transfer_queue as tq
from omegaconf import DictConfig, open_dict
from tensordict import TensorDict
from torchdata.stateful_dataloader import StatefulDataLoader
from transfer_queue import KVBatchMeta
from verl.single_controller.ray import ResourcePoolManager
from verl.trainer.ppo.utils import Role
from verl.trainer.ppo.v1 import (
    PPOTrainer,
    PPOTrainerColocateAsync,
    PPOTrainerSeparateAsync,
    PPOTrainerSync,
    register_trainer,
)
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.dataset.rl_dataset import collate_fn
from verl.utils.debug import marked_timer

from paced_verl import fields
from paced_verl.checks import check, check_length, resume
from paced_verl.config import ConfigError
from paced_verl.config.wiring import teacher_paths, wire
from paced_verl.fingerprint import fingerprint_of, tokenizer_hash
from paced_verl.pacing.protocol import IntArray
from paced_verl.pacing.schedule import Responses, Stage
from paced_verl.run.capability import Shared
from paced_verl.run.measure import Counts
from paced_verl.run.outcomes import RefillLimit, Report
from paced_verl.run.record import record_end, write_record
from paced_verl.run.state import PacedState
from paced_verl.run.tokens import Tokens
from paced_verl.training.alignment import Aligning, aligning
from paced_verl.training.dataset import NumberedPrompts, capabilities_of
from paced_verl.training.health import EngineWatch
from paced_verl.training.loss import BY_CAPABILITY, METRIC_PREFIX, paced_loss
from paced_verl.training.measure import Measuring
from paced_verl.training.reference_teacher import ReferenceTeacherDriver
from paced_verl.training.rows import read_rows, write_weights
from paced_verl.training.worker import PACED_WORKERS

POLL_SECONDS = 0.2  # verl looks for finished rollouts every 2 s, which is most of a short step


if TYPE_CHECKING:
    _Base = PPOTrainer
else:
    _Base = object  # a mixin: verl's trainer comes second


class RefillError(RuntimeError):
    """verl would replace prompts for ever."""


class PacedTrainer(_Base):
    """Mixin over verl's V1 trainers: everything that PACED adds on the driver."""

    base_mode: str
    """verl's name of the trainer below, whose settings ``trainer.v1.<base_mode>`` it reads."""
    servers_sleep: bool = True
    """Whether the student's servers sleep while the trainer trains."""

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
        self.teacher: ReferenceTeacherDriver | None = None
        self._student_n = config.actor_rollout_ref.rollout.n
        # Of the step: amounts over the batches it trains, and what was true after the last one.
        self._amounts: dict[str, float] = defaultdict(float)
        self._values: dict[str, float] = {}
        self._report = Report()
        self._tokens = Tokens()  # since the last step was logged
        self._refills = self._refill_limit()
        self._aligning: Aligning | None = None
        self._aligned: dict[str, float] = {}  # after the step

    # ------------------------------------------------------------------ set-up

    def _init_dataloader(self) -> None:
        super()._init_dataloader()
        self.schedule = self.paced.build_schedule(self.total_training_steps)
        self.prompts = NumberedPrompts(self.train_dataset)
        check_length(self.steps_per_epoch * self.config.trainer.total_epochs, self.total_training_steps)
        if changed := list(resume.problems(self.config, self.paced, self.schedule)):
            raise ConfigError("\n".join(changed))
        self._settings = resume.settings_of(self.config, self.paced, self.schedule)
        shared = self._shared()
        drawn = len(self.prompts) if shared is None else int(shared.capabilities.sizes.sum())
        self.state = PacedState(
            self.paced,
            self.schedule,
            prompts=len(self.prompts),
            epoch_size=drawn // self._gen_batch_size * self._gen_batch_size,  # no batch is cut short
            batch=self._gen_batch_size,
            student_n=self._student_n,
            task_rewards=self._task_rewards,
            filters_groups=self._filters_groups,
            fingerprint=fingerprint_of(self.train_dataset),
            tokenizer_hash=tokenizer_hash(self.tokenizer),
            dataset=self.train_dataset,
            tokenizer=self.tokenizer,
            history=self._run_folder / "pass_rates",
            shared=shared,
        )
        student = omega_conf_to_dataclass(self.config.actor_rollout_ref.model).hf_config
        self.state.targets.check(self.train_dataset, student.get_text_config().vocab_size)
        self.train_dataloader = self._new_dataloader()

    def _shared(self) -> Shared | None:
        """What is shared among capabilities, by the rows that verl has kept."""
        if self.paced.capability is None:
            return None
        capabilities, levels = capabilities_of(self.train_dataset, self.paced.capability, self.paced.sampler.seed)
        rows = np.array(self.schedule.rows(self.config.data.train_batch_size, self._student_n))
        return Shared(
            self.paced.capability,
            capabilities,
            steps=self.total_training_steps,
            rows=int(rows.max()),
            most_tokens=self.config.data.max_response_length,
            seed=self.paced.sampler.seed,
            folder=self._run_folder / "capability",
            levels=levels,
            attempts=self.paced.targets.attempts,
            by_step=rows,
        )

    @property
    def _run_folder(self) -> Path:
        """Where what is not of one checkpoint is kept."""
        return Path(self.config.trainer.default_local_dir) / "paced"

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
            sampler=self.state.rates.sampler,
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
        if self.paced.teacher.backend == "reference":
            (path,) = teacher_paths(self.config).values()
            self.teacher = ReferenceTeacherDriver(self.actor_rollout_wg, self.paced.teacher, path)
            if self.global_steps > 0:
                self.teacher.load(self._paced_folder(resumed=True) / "teacher")
        allocation = self.state.allocation
        loss = partial(
            paced_loss,
            config=omega_conf_to_dataclass(self.config.actor_rollout_ref.actor),
            distillation_config=self.distillation_config,
            paced=self.paced,
            schedule=self.schedule,
            groups=None if allocation is None else torch.from_numpy(allocation.capabilities.groups),
        )
        self.actor_rollout_wg.set_paced_loss(loss)

    def fit(self, agent_loop_manager: Any) -> None:
        fingerprint = self.state.rates.table.fingerprint
        write_record(self._run_folder, self.config, self.schedule, len(self.prompts), fingerprint, self.global_steps)
        self.measuring = Measuring(
            self.prompts,
            temperature=self.paced.pass_rate.temperature,
            threshold=self.paced.pass_rate.threshold,
            chunk=max(self.config.data.train_batch_size, 256),
            agent_loop_manager=agent_loop_manager,
            replay_buffer=self.replay_buffer,
        )
        if self.paced.alignment.every_steps is not None:
            self._aligning = aligning(
                self.config,
                self.paced,
                self.train_dataset,
                (self.get_llm_client(), self.get_teacher_client()),
                self._run_folder / "alignment",
                lambda *tokens: self._tokens.add("alignment", *tokens),
            )
        loops = {f"Agent-loop worker {i}": worker for i, worker in enumerate(agent_loop_manager.agent_loop_workers)}
        with EngineWatch(self._engines() | loops, self._addresses(), prompt=loops) as watch:
            try:
                super().fit(agent_loop_manager)
            except (Exception, KeyboardInterrupt) as error:
                cause = watch.find_dead() or self._cause(error)
                record_end(self._run_folder, cause or f"{type(error).__name__}: {error}")
                if cause is None:
                    raise
                raise RuntimeError(f"The run ended at step {self.global_steps}: {cause}") from error
            else:
                record_end(self._run_folder)
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
        news = self.agent_loop_manager.pop_report()  # type: ignore[attr-defined]  # checks: it is ours
        self._refills.observe(news.outcomes)
        self._report.add([news])
        self._tokens.update(news.tokens)

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
        if self.global_steps <= self.total_training_steps:
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
        self.state.before_step(step, partial(self._measure, step), partial(self._likelihood, step))

    def on_step_end(self) -> None:
        super().on_step_end()
        every = self.paced.alignment.every_steps
        if self._aligning is not None and every is not None and self.global_steps % every == 0:
            with marked_timer("alignment", self.timing_raw):
                self._aligned = self._aligning.after(self.global_steps)
        if self.global_steps >= self.total_training_steps:
            after = self.global_steps + 1
            self.state.after_run(self.global_steps, partial(self._measure, after), partial(self._likelihood, after))
        self._end_in_time()

    def _end_in_time(self) -> None:
        """Make the next step the last one where the budget may not pay for two: verl validates and saves after it.

        verl asks before a step whether it is the last, so that what the step leaves over is not known yet. Where the
        budget pays for none, as it does for a run that it has ended before, there is no next step.
        """
        allocation = self.state.allocation
        if allocation is None or allocation.affordable(2):
            return
        last = self.global_steps + int(allocation.affordable(1))
        if last < self.total_training_steps:
            print(
                f"[paced] paced.capability.budget: {allocation.ledger.left:,} tokens are left, and a step may take "
                f"{allocation.most_of_step:,}: the run ends after step {last}",
                flush=True,
            )
            self.total_training_steps = last

    def _enter(self, stage: Stage) -> None:
        # Also where it is 1: verl restores the learning rate of a checkpoint, whatever actor.optim.lr says now.
        self.actor_rollout_wg.set_lr_factor(stage.lr_factor)
        n = self.state.responses_per_prompt(stage)
        rows = self.config.data.train_batch_size * n
        print(f"[paced] {stage}; {n} response(s) per prompt, {rows} rows per step", flush=True)
        self.stage = stage

    def _measure(self, step: int, which: IntArray, samples: int, by: Responses = "student") -> Counts:
        """How student or teacher do on some training prompts, with the weights that ``step`` starts from."""
        counts = self.measuring.wait_for(which, samples, step, by)
        self._say_what_failed()
        return counts

    def _likelihood(self, step: int, which: IntArray, responses: Sequence[Sequence[int]]) -> np.ndarray:
        """How probable the student finds responses, with the weights that ``step`` starts from."""
        found = self.measuring.likelihood(which, responses, step)
        self._say_what_failed()
        return found

    def _say_what_failed(self) -> None:
        self._hear()
        if errors := self._report.errors:
            print(f"[paced] {len(errors)} rollout(s) of the estimate failed; the first: {errors[0]}", flush=True)

    def on_sample_begin(self) -> None:
        # The step's own prompts are on their way: what is drawn next is sampled beside them.
        super().on_sample_begin()
        which, settings = self.state.rates.ahead(self.global_steps), self.paced.pass_rate
        if not which.size or self.measuring.under_way is not None:
            return
        self.measuring.send(which, settings.samples, self.global_steps)
        unjudged = self.state.rates.unjudged(which)
        if unjudged.size:
            assert settings.teacher_samples is not None
            self.measuring.send(unjudged, settings.teacher_samples, self.global_steps, by="teacher")

    def on_sample_end(self) -> None:
        if self.servers_sleep:
            self._take_ahead()
        super().on_sample_end()

    def on_validate_begin(self) -> None:
        self._take_ahead()  # verl's validation and what was sent ahead would wait for each other's rows
        super().on_validate_begin()

    def _take_ahead(self) -> None:
        """Take up what was sampled beside a step's rollouts."""
        if (step := self.measuring.under_way) is not None:
            started = time.monotonic()
            counts = self.measuring.collect()
            seconds = time.monotonic() - started
            self.state.rates.take_ahead(counts["student"], counts.get("teacher"), step, seconds)

    # ------------------------------------------------------------------ one step

    def _next_train_batch(self, num_prompts: int | None = None) -> TensorDict:
        self._take_ahead()
        draws = num_prompts or self.config.data.train_batch_size
        self.state.rates.before_draw(self.global_steps, draws, partial(self._measure, self.global_steps))
        batch = super()._next_train_batch(num_prompts)
        prompts = np.asarray([int(prompt) for prompt in batch[fields.PROMPT]])
        told = self.state.tell(prompts, self.global_steps)
        for name, values in (told | {"__rollout_n__": told[fields.SESSIONS]}).items():
            tu.assign_non_tensor_stack(batch, name, values)
        return batch

    def step(self, metrics: dict, timing_raw: dict) -> KVBatchMeta:
        self._amounts.clear()
        batch = super().step(metrics, timing_raw)
        if self.teacher is not None:
            self.teacher.after_step(self.global_steps)
        asked = self._amounts
        rate = asked["paced/teacher/seconds"] / max(asked["paced/teacher/tokens"], 1)
        asked["paced/teacher/seconds_saved"] = asked["paced/teacher/tokens_saved"] * rate
        metrics.update(asked | self._values)  # whole steps: verl averages over the updates of one
        return batch

    def _balance_batch(self, batch: KVBatchMeta, metrics: dict, *args: Any, **kwargs: Any) -> KVBatchMeta:
        # The first hook that sees a step's scored rows, and the last before verl adds padding rows to them.
        rows = read_rows(batch, self.paced.pass_rate.threshold)
        with open_dict(self.config):  # verl sizes mini-batches and their padding by it
            self.config.actor_rollout_ref.rollout.n = rows.responses_per_prompt
        factor = rows.weight_factor()
        if (factor != 1).any():
            write_weights(batch, rows.weight * factor)
        self._hear()
        report, self._report = self._report, Report()
        if errors := report.errors:
            print(
                f"[paced] {len(errors)} rollout(s) failed in step {self.global_steps}; the first: {errors[0]}",
                flush=True,
            )
        self._values, amounts = self.state.learn(rows, report, self.global_steps)
        for name, amount in amounts.items():
            self._amounts[name] += amount
        return super()._balance_batch(batch, metrics, *args, **kwargs)

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
        if self.teacher is not None:
            started = time.monotonic()
            with marked_timer("teacher", self.timing_raw):
                batch = self.teacher.ask(batch)
            self._amounts["paced/teacher/seconds"] += time.monotonic() - started
        batch = super()._update_actor(batch, metrics)
        sums = {name: metrics.pop(name) for name in list(metrics) if name.startswith(f"actor/{METRIC_PREFIX}/")}
        tokens = sums.pop(f"actor/{METRIC_PREFIX}/tokens")
        self._learn_divergence(metrics)
        metrics[f"{METRIC_PREFIX}/tokens"] = tokens
        metrics.update({name.removeprefix("actor/"): total / max(tokens, 1.0) for name, total in sums.items()})
        return batch

    def _learn_divergence(self, metrics: dict) -> None:
        """Hand each capability's sums to who decides on their shares."""
        if self.state.allocation is not None:
            groups = range(len(self.state.allocation.r))
            total, tokens = (
                np.array([metrics.pop(f"actor/{BY_CAPABILITY}/{group}/{name}") for group in groups])
                for name in ("reverse_kl", "tokens")
            )
            self.state.allocation.learn_divergence(total, tokens)

    def _compute_metrics(self, batch: KVBatchMeta, metrics: dict, *args: Any, **kwargs: Any) -> None:
        # The last hook before a step is logged: also what an estimate and verl's validation after it have cost.
        super()._compute_metrics(batch, metrics, *args, **kwargs)
        self._hear()
        for name, amount in self.state.rates.pop_amounts().items():
            metrics[name] = metrics.get(name, 0.0) + amount
        metrics.update(self._tokens.metrics())
        self._tokens = Tokens()
        metrics.update(self._aligned)
        self._aligned = {}

    # ------------------------------------------------------------------ checkpoints

    def _paced_folder(self, resumed: bool = False) -> Path:
        """Where a checkpoint's state of ours is: of this step, or of the one that the run has resumed from."""
        if resumed and self.config.trainer.resume_mode == "resume_path":
            return Path(self.config.trainer.resume_from_path) / "paced"
        return Path(self.config.trainer.default_local_dir) / f"global_step_{self.global_steps}" / "paced"

    def _save_checkpoint(self) -> None:
        self._take_ahead()  # a resumed run knows it, as this one will
        folder = self._paced_folder()
        self.state.save(folder, self.global_steps)
        resume.save(self._settings, folder)
        if self.teacher is not None:
            self.teacher.save(folder / "teacher")
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
        self._end_in_time()
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
    servers_sleep = False

    def _setup(self) -> None:
        # verl 0.9.1 hands print's "flush" to its logger where hybrid_engine is off, which a logger that logs refuses.
        logging.getLogger(PPOTrainerSeparateAsync.__module__).setLevel(logging.WARNING)
        super()._setup()
