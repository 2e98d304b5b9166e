"""What a run knows of pass rates: when it measures them, and the kernel and the sampler that read them."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any, cast

import numpy as np

from paced_verl.config import PacedConfig
from paced_verl.pacing.kernel import Kernel
from paced_verl.pacing.pass_rates import PassRateTable
from paced_verl.pacing.policies import get_sampler
from paced_verl.pacing.protocol import Groups, IntArray, LooksAhead, PromptSampler, SamplerSettings, Window
from paced_verl.pacing.reliability import Reliability, wasted
from paced_verl.pacing.schedule import Schedule, refresh_due
from paced_verl.run.measure import Counts, Measure

TEACHER_FILE = "teacher_pass_rates.parquet"
WASTED, TEACHABLE = 0.5, 0.8
"""A warning is due where more than so many prompts are hopeless, and the teacher solves more than so many of these."""


class PassRates:
    """The table of a run, with what is made of it.

    Args:
        paced: The parsed ``paced`` block.
        schedule: Its stages, in steps.
        prompts: Number of training prompts.
        epoch_size: Draws of one pass over them (whole batches).
        batch: Prompts that are drawn at a time.
        every_prompt: Whether none may be left out for its weight.
        fingerprint: Names the data set: a table of another one is refused.
        history: Folder for every estimate; ``None``: they are not kept.
        groups: Where several capabilities share the draws.

    Attributes:
        teacher: Counts of the teacher's own responses.
        last_refresh: The step before which all were last estimated (1 for a table from a file); ``None``: never.
    """

    def __init__(
        self,
        paced: PacedConfig,
        schedule: Schedule,
        *,
        prompts: int,
        epoch_size: int,
        batch: int,
        every_prompt: bool,
        fingerprint: str,
        history: Path | None,
        groups: Groups | None = None,
    ):
        self.settings, self.weight, self.schedule, self.history = paced.pass_rate, paced.weight, schedule, history
        self.table = PassRateTable(prompts, self.settings.decay, fingerprint)
        self.teacher = PassRateTable(prompts, fingerprint=fingerprint)
        self.kernel = self.weight.to_kernel()
        self.last_refresh: int | None = None
        self._fitted_to = 0  # prompts that had been measured when numbers were last fitted to them, with refresh: draw
        self._batch = batch
        self._drawable = np.arange(prompts) if groups is None else np.flatnonzero(groups.of >= 0)
        self._amounts: dict[str, float] = {}
        settings = SamplerSettings(
            power=paced.sampler.power,
            explore=paced.sampler.explore,
            seed=paced.sampler.seed,
            skip_zero_weight=paced.sampler.skip_zero_weight and not every_prompt,
            epoch_size=epoch_size,
            teacher=Reliability(self.teacher, self.weight.teacher),
            groups=groups,
            window=Window(batch, self.settings.ahead, self.settings.max_age) if self.looks_ahead else None,
        )
        self.sampler: PromptSampler = get_sampler(paced.sampler.policy)(self.table, self.kernel, settings)
        if self.settings.file is not None:
            table = self._load(Path(self.settings.file))
            table.last_seen[:] = np.where(table.samples > 0, 0, -1)  # its steps are another run's
            self.use(table, step=1)

    # ------------------------------------------------------------------ of all prompts

    def before_step(self, step: int, measure: Measure) -> None:
        """Bring pass rates up to date for a step, where that is due."""
        settings = self.settings
        if refresh_due(step, self.last_refresh, settings.refresh, settings.every_steps, self.schedule):
            self.use(self.estimate(step, measure), step)

    def after_run(self, step: int, measure: Measure) -> None:
        """Estimate once more after the last step, for the record, where that is asked for."""
        if self.settings.at_end:
            self.estimate(step + 1, measure)

    def estimate(self, step: int, measure: Measure) -> PassRateTable:
        """The pass rates of all prompts, with the weights that ``step`` starts from."""
        table = PassRateTable(len(self.table), self.settings.decay, self.table.fingerprint)
        counts = self._timed(measure, self._drawable, step)
        table.observe(counts.prompts, counts.successes, counts.samples, step)
        self._keep(table, step - 1)
        print(f"[paced] pass rates before step {step}: {self._in_words(table)}", flush=True)
        return table

    def _timed(self, measure: Measure, which: IntArray, step: int) -> Counts:
        """The student's counts; the teacher's are taken up, where they are to be measured and are not known."""
        started = time.monotonic()
        counts, unjudged = measure(which, self.settings.samples), self.unjudged(which)
        if unjudged.size:
            assert self.settings.teacher_samples is not None
            self.take_teacher(measure(unjudged, self.settings.teacher_samples, by="teacher"), step)
        self._add(len(which), time.monotonic() - started)
        return counts

    def _add(self, prompts: int, seconds: float) -> None:
        for name, amount in (("measured", prompts), ("seconds", seconds)):
            key = f"paced/pass_rate/{name}"
            self._amounts[key] = self._amounts.get(key, 0.0) + amount

    def _in_words(self, table: PassRateTable) -> str:
        summary, measured = table.summary(), self._amounts
        return (
            f"mean {summary['mean']:.3f}; {summary['low']:.0%} below .2, {summary['frontier']:.0%} between, "
            f"{summary['high']:.0%} above .8 ({measured['paced/pass_rate/measured']:.0f} prompts × "
            f"{self.settings.samples} samples in {measured['paced/pass_rate/seconds']:.0f} s)"
        )

    def _keep(self, table: PassRateTable, step: int) -> None:
        """Keep a table as it is after a step, for the report."""
        if self.history is not None:
            self.history.mkdir(parents=True, exist_ok=True)
            table.save(self.history / f"after_step_{step}.parquet")

    def _load(self, path: Path) -> PassRateTable:
        return PassRateTable.load(path, len(self.table), self.table.fingerprint, self.settings.decay)

    def use(self, table: PassRateTable, step: int) -> None:
        """Weigh by this table from ``step`` on, with what the configuration leaves to the data fitted to it."""
        self.kernel, self.table = self._fitted(table, strict=self.last_refresh is None), table
        self.last_refresh = step
        self.sampler.refresh(self.kernel, table)
        self._warn_of_waste()

    def _fitted(self, table: PassRateTable, strict: bool) -> Kernel:
        """The kernel, with what the configuration leaves to the data; as it is where they say nothing, or an error."""
        weight, kernel = self.weight, self.kernel
        try:
            kernel = weight.with_exponents(kernel, table)
        except ValueError as error:
            if strict:
                raise
            print(f"[paced] keeping α={kernel.alpha:.3g}, β={kernel.beta:.3g}: {error}", flush=True)
        return weight.with_prior(kernel, table)

    # ------------------------------------------------------------------ of what is about to be drawn

    @property
    def looks_ahead(self) -> bool:
        """Whether pass rates are those of the prompts that are about to be drawn."""
        return self.settings.refresh == "draw"

    def before_draw(self, step: int, draws: int, measure: Measure) -> None:
        """Measure what is about to be drawn and is not known, where pass rates are measured so.

        Args:
            step: The step about to be trained.
            draws: Prompts that will be drawn.
            measure: Samples and waits.
        """
        if not self.looks_ahead:
            return
        sampler, left = cast(LooksAhead, self.sampler), self._draws_left(step - 1)
        first = self.table.last_seen.max() < 0
        while len(missing := sampler.missing(step, draws)):
            self.take(self._timed(measure, np.union1d(missing, sampler.ahead(step, left)), step), step)
        if first:
            print(f"[paced] pass rates of what is drawn first: {self._in_words(self.table)}", flush=True)

    def ahead(self, step: int) -> IntArray:
        """The prompts to measure while ``step``, whose prompts are drawn, is rolled out: those that are drawn next."""
        if not self.looks_ahead:
            return np.empty(0, np.int64)
        return cast(LooksAhead, self.sampler).ahead(step, self._draws_left(step))

    def _draws_left(self, step: int) -> int:
        """After those of a step, as far as no prompt is replaced."""
        return max(0, self.schedule.stages[-1].last - step) * self._batch

    def take_ahead(self, counts: Counts, teachers: Counts | None, step: int, seconds: float) -> None:
        """Take up what was measured while a step was rolled out.

        Args:
            counts: Of the prompts that :meth:`ahead` named.
            teachers: The teacher's, of those of them that were :meth:`unjudged`.
            step: The step.
            seconds: What it made the step wait.
        """
        self._add(len(counts.prompts), seconds)
        if teachers is not None:
            self.take_teacher(teachers, step)
        self.take(counts, step)

    def take(self, counts: Counts, step: int) -> None:
        """Weigh by these counts, too; what is fitted is fitted anew whenever twice as many prompts are known."""
        self.table.observe(counts.prompts, counts.successes, counts.samples, step)
        self.table.last_seen[counts.prompts] = step  # also where no response came: it is not asked for again and again
        known = int(np.count_nonzero(self.table.samples))
        if known >= max(1, 2 * self._fitted_to):
            self.kernel, self._fitted_to = self._fitted(self.table, strict=False), known
            self.sampler.refresh(self.kernel)
            self._warn_of_waste()
        else:
            self.sampler.update(counts.prompts)

    # ------------------------------------------------------------------ the teacher's own

    def unjudged(self, which: IntArray) -> IntArray:
        """Of these prompts, those of which the teacher is to write some and has written none."""
        return which[self.teacher.last_seen[which] < 0] if self.settings.teacher_samples else which[:0]

    def take_teacher(self, counts: Counts, step: int) -> None:
        """Take up what was measured of the teacher."""
        self.teacher.last_seen[counts.prompts] = step  # also where no response came
        self.observe_teacher(counts.prompts, counts.successes, counts.samples, step)

    def observe_teacher(self, prompts: IntArray, correct: IntArray, samples: IntArray, step: int) -> None:
        """Count responses of the teacher, each entry a prompt, (R,) all."""
        if prompts.size:
            self.teacher.observe(prompts, correct, samples, step)
            if self.weight.teacher is not None:
                self.sampler.update(prompts)

    def teacher_metrics(self) -> dict[str, float]:
        """How often the teacher is right, over the prompts of which that is known."""
        summary = self.teacher.summary()
        if summary["unseen"] == 1:
            return {}
        return {"paced/teacher/pass_rate": summary["mean"], "paced/teacher/unjudged": summary["unseen"]}

    def _warn_of_waste(self) -> None:
        """Say so where many prompts are left out that the teacher could teach."""
        weights = self.kernel(self.table.successes, self.table.samples)
        share, solved = wasted(weights, self.table, self.teacher)
        if share > WASTED and solved > TEACHABLE:
            print(
                f"[paced] warning: {share:.0%} of the prompts weigh 0 because the student solves them never, and the "
                f"teacher solves {solved:.0%} of these: they could teach. paced.weight.estimate=posterior gives them a "
                "small weight, paced.sampler.explore=0.1 looks again",
                flush=True,
            )

    # ------------------------------------------------------------------ a step's own rollouts

    def observe(self, prompts: IntArray, correct: IntArray, samples: IntArray, step: int) -> None:
        """Count rollouts that trained, each entry a prompt or a response, (R,) all."""
        if prompts.size:
            self.table.observe(prompts, correct, samples, step)
            self.sampler.update(prompts)

    def pop_amounts(self) -> dict[str, float]:
        """What measuring has cost since this was last asked, by the metrics' names."""
        amounts, self._amounts = self._amounts, {}
        return amounts

    # ------------------------------------------------------------------ checkpoints

    @property
    def fitted(self) -> dict[str, Any]:
        """The kernel's numbers that were taken from the data, not from the configuration."""
        weight, kernel = self.weight, self.kernel
        fitted: dict[str, Any] = {"alpha": kernel.alpha, "beta": kernel.beta} if weight.fit is not None else {}
        if weight.estimate == "posterior" and weight.prior is None:
            fitted["prior"] = kernel.prior
        return fitted

    def save(self, file: Path, step: int) -> dict[str, Any]:
        """Write the tables as they are after a step; returns what else is to be kept, as JSON would hold it."""
        self.table.save(file)
        self.teacher.save(file.with_name(TEACHER_FILE))
        if self.looks_ahead:
            self._keep(self.table, step)
        return {"last_refresh": self.last_refresh, "fitted": self.fitted, "fitted_to": self._fitted_to}

    def load(self, file: Path, state: dict[str, Any]) -> None:
        """Go on from what :meth:`save` wrote and returned.

        Raises:
            ValueError: It belongs to another data set.
        """
        fitted = dict(state["fitted"])
        if "prior" in fitted:
            fitted["prior"] = tuple(fitted["prior"])
        self.last_refresh, self._fitted_to = state["last_refresh"], state["fitted_to"]
        self.table, self.kernel = self._load(file), dataclasses.replace(self.kernel, **fitted)
        self.teacher.take_over(self._load(file.with_name(TEACHER_FILE)))
        self.sampler.refresh(self.kernel, self.table)
