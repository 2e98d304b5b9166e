"""What a run knows, what it decides by that, and what a checkpoint keeps of it. No Ray, no verl.

The trainer executes: it gives a way to measure, hands over the rows that came back, and asks what to tell the next.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from paced_verl import fields
from paced_verl.atomic import replacing
from paced_verl.config import PacedConfig
from paced_verl.fingerprint import prompt_hash
from paced_verl.pacing.instructions import row_instructions
from paced_verl.pacing.kernel import weights_by_successes
from paced_verl.pacing.mix import MixSampler
from paced_verl.pacing.protocol import IntArray
from paced_verl.pacing.schedule import Schedule, Stage
from paced_verl.run.capability import Allocation, Shared
from paced_verl.run.measure import Likelihood, Measure
from paced_verl.run.outcomes import Report
from paced_verl.run.pass_rates import PassRates
from paced_verl.run.step_rows import StepRows
from paced_verl.targets.files import Origin
from paced_verl.targets.store import Target, TargetStore, response_in


class Saved(Protocol):
    """A part of a checkpoint, in a file or folder of its own."""

    def save(self, path: Path) -> None:
        """Write it."""

    def load(self, path: Path) -> None:
        """Read what :meth:`save` wrote."""


class Learnt(NamedTuple):
    """What a batch of rows says: values of this moment, and amounts that add up over a step's batches."""

    values: dict[str, float]
    amounts: dict[str, float]


class PacedState:
    """The state of a run on the driver, at first what the files that its configuration names say.

    Args:
        paced: The parsed ``paced`` block.
        schedule: Its stages, in steps.
        prompts: Number of training prompts.
        epoch_size: Draws of one pass over them (whole batches).
        batch: Prompts that are drawn at a time.
        student_n: Responses of the student to a prompt.
        task_rewards: Whether prompts also get a task reward: then none may be left out for its weight.
        filters_groups: Whether DAPO's filter drops groups.
        fingerprint: Names the data set: a table or targets of another one are refused.
        tokenizer_hash: Names the student's tokens: targets in others are refused.
        dataset: verl's rows by position, and
        tokenizer: the student's: read where responses are stored.
        history: Folder for every estimate of pass rates; ``None``: they are not kept.
        shared: Where capabilities share the draws.

    Attributes:
        parts: What else a checkpoint keeps, by the name of its file or folder.
        allocation: Decides on their shares; ``None``: there are none.
    """

    def __init__(
        self,
        paced: PacedConfig,
        schedule: Schedule,
        *,
        prompts: int,
        epoch_size: int,
        batch: int = 1,
        student_n: int = 1,
        task_rewards: bool = False,
        filters_groups: bool = False,
        fingerprint: str = "",
        tokenizer_hash: str = "",
        dataset: Any = None,
        tokenizer: Any = None,
        history: Path | None = None,
        shared: Shared | None = None,
    ):
        self.paced, self.schedule = paced, schedule
        self.student_n, self.filters_groups = student_n, filters_groups
        self.dataset, self.tokenizer = dataset, tokenizer
        self.targets = TargetStore(Origin(fingerprint, tokenizer_hash))
        self.parts: dict[str, Saved] = {}
        self.rates = PassRates(
            paced,
            schedule,
            prompts=prompts,
            epoch_size=epoch_size,
            batch=batch,
            every_prompt=task_rewards or paced.weight.source == "group",
            fingerprint=fingerprint,
            history=history,
            groups=None if shared is None else shared.groups,
        )
        self.allocation: Allocation | None = None
        if shared is not None:
            assert isinstance(self.rates.sampler, MixSampler)
            self.allocation = Allocation(shared, self.rates.sampler)
            self.parts["capability.json"] = self.allocation
        if paced.targets.file is not None and Path(paced.targets.file).exists():
            self.targets.load(paced.targets.file)
            self.rates.observe_teacher(*self.targets.outcomes(), step=0)

    # ------------------------------------------------------------------ a step

    def before_step(self, step: int, measure: Measure, likelihood: Likelihood | None = None) -> None:
        """Bring pass rates and shares up to date for a step, where that is due.

        Args:
            step: The step about to be drawn.
            measure: Samples and waits.
            likelihood: Reads, where capabilities are probed so.
        """
        self.rates.before_step(step, measure)
        if self.allocation is not None:
            self.allocation.before_step(step, measure, likelihood)

    def after_run(self, step: int, measure: Measure, likelihood: Likelihood | None = None) -> None:
        """What is measured once more after the last step."""
        self.rates.after_run(step, measure)
        if self.allocation is not None:
            self.allocation.after_run(measure, likelihood)

    def responses_per_prompt(self, stage: Stage) -> int:
        """How many responses a prompt gets in a stage."""
        return stage.responses_per_prompt(self.student_n)

    def tell(self, prompts: IntArray, step: int) -> dict[str, list[Any]]:
        """What the rows of these prompts are told (:mod:`paced_verl.fields`), one entry a prompt.

        Args:
            prompts: Positions in the training set, as the sampler has just drawn them.
            step: The step they are drawn in.
        """
        stage = self.schedule.at(step)
        n, group, route = self.responses_per_prompt(stage), self.paced.weight.source == "group", self.paced.route
        sampler = self.rates.sampler
        rows = row_instructions(
            sampler.loss_weights(prompts),
            stage=stage,
            step=step,
            n=n,
            group_weights=weights_by_successes(self.rates.kernel, n - 1, sampler.mean_weight) if group else None,
            rates=self.rates.table.rates(prompts),
            route=route.to_route() if route else None,
        )
        if stage.responses == "teacher":
            rows[fields.TARGET] = [self._stored_target(prompt) for prompt in prompts.tolist()]
        return rows

    def _stored_target(self, prompt: int) -> list[int] | None:
        """Token ids of the stored response, or of the data's own; ``None``: the teacher writes one."""
        row = self.dataset[prompt]
        target = self.targets.get(prompt, row["raw_prompt"])
        text = response_in(row, self.paced.targets.column) if self.paced.targets.column else None
        if text is not None and not self.targets.has_response(prompt):
            ids = (*self.tokenizer.encode(text, add_special_tokens=False), self.tokenizer.eos_token_id)
            target = Target(ids, text, prompt_hash=prompt_hash(row["raw_prompt"]))
            self.targets.add(prompt, target)
        return None if target is None else list(target.token_ids)

    def learn(self, rows: StepRows, report: Report, step: int) -> Learnt:
        """Take up what came back.

        Args:
            rows: Of a batch that trains.
            report: What the workers have seen since the last one.
            step: The step that trains it.
        """
        by_student = np.array([self.schedule.stages[stage].responses == "student" for stage in rows.stages.tolist()])
        last = rows.sessions.last
        self._judge_teacher(rows, last & ~by_student, step)
        self._store_targets(rows, ~by_student)
        if self.allocation is not None:
            self.allocation.learn(rows)
        if self.paced.pass_rate.from_training:
            self._observe(rows, report, last & by_student, step)
        amounts = {
            "paced/teacher/tokens": rows.total("tokens"),
            "paced/teacher/tokens_saved": rows.total("tokens_saved"),
            "paced/teacher/seconds": rows.total("seconds"),
            "paced/teacher/tokens_dropped": report.dropped_tokens,
            "paced/teacher/skipped_rows": float((rows.weight[last] == 0).sum()),
            "paced/teacher/no_context": rows.total("no_context"),
            "paced/targets/skipped": rows.total("gave_up"),
            "paced/rollout/failed": float(len(report.errors)),
        }
        if self.paced.route is not None:
            amounts["paced/route/no_task"] = float((rows.task[last] == 0).sum())
            amounts["paced/route/self_taught"] = rows.total("self_taught")
        values = {
            "paced/stage": float(self.schedule.at(step).index + 1),
            "paced/targets/stored": float(len(self.targets)),
            **self.rates.sampler.metrics(step),
            **self.rates.teacher_metrics(),
            **(self.allocation.metrics() if self.allocation else {}),
        }
        return Learnt(values, amounts | self.rates.pop_amounts())

    def _observe(self, rows: StepRows, report: Report, rollouts: np.ndarray, step: int) -> None:
        """Count a step's rollouts; under DAPO's filter those of dropped groups, too, of which no row is left."""
        prompts, correct = rows.prompts[rollouts], rows.correct[rollouts].astype(np.int64)
        samples = np.ones(len(prompts), np.int64)
        if self.filters_groups:
            seen = [(seen.prompt, seen.successes, seen.responses) for seen in report.outcomes if seen.responses]
            prompts, correct, samples = np.array(seen, np.int64).reshape(-1, 3).T
        self.rates.observe(prompts, correct, samples, step)

    def _judge_teacher(self, rows: StepRows, written: np.ndarray, step: int) -> None:
        """Count the responses of a teacher whose prompts it had none judged of, with the tries they took."""
        gave_up = rows.asked["gave_up"].astype(bool)
        tries = np.maximum(rows.asked["tries"].astype(np.int64), 1)  # a stored response was tried once at least
        new = written & (gave_up | (rows.weight > 0)) & (self.rates.teacher.samples[rows.prompts] == 0)
        correct = (rows.correct & ~gave_up).astype(np.int64)
        self.rates.observe_teacher(rows.prompts[new], correct[new], tries[new], step)

    def _store_targets(self, rows: StepRows, written: np.ndarray) -> None:
        """Keep the responses that a teacher has written."""
        gave_up = rows.asked["gave_up"].astype(bool)
        for i in np.flatnonzero(written).tolist():
            prompt = int(rows.prompts[i])
            if prompt not in self.targets and (gave_up[i] or rows.weight[i] > 0):
                ids = () if gave_up[i] else tuple(rows.responses[i].tolist())
                text = self.tokenizer.decode(ids, skip_special_tokens=True)
                tries = max(1, int(rows.asked["tries"][i]))
                correct, hashed = bool(rows.correct[i]), prompt_hash(rows.messages[i])
                self.targets.add(prompt, Target(ids, text, correct, hashed, tries))

    # ------------------------------------------------------------------ checkpoints

    def save(self, folder: Path, step: int) -> None:
        """Write all but the sampler's position after a step, which is its dataloader's state in verl's files."""
        folder.mkdir(parents=True, exist_ok=True)
        kept = self.rates.save(folder / "pass_rates.parquet", step)
        self.targets.save_parts(folder / "targets")
        for name, part in self.parts.items():
            part.save(folder / name)
        with replacing(folder / "state.json") as file:
            file.write_text(json.dumps(kept))

    def load(self, folder: Path) -> None:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: It belongs to another data set.
        """
        self.rates.load(folder / "pass_rates.parquet", json.loads((folder / "state.json").read_text()))
        self.targets.load(folder / "targets")
        for name, part in self.parts.items():
            part.load(folder / name)
