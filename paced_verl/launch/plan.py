"""What will actually run, in words and numbers, from a composed configuration: no Ray, no GPU."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from paced_verl.capability.table import Capabilities
from paced_verl.checks import check, check_length, number_of_prompts
from paced_verl.checks.capability import capabilities_of_files, check_probes, probe_responses
from paced_verl.config import PacedConfig
from paced_verl.config.capability import STATIC
from paced_verl.config.verdicts import Verdict
from paced_verl.config.wiring import teacher_paths
from paced_verl.launch.advice import Known, recommend
from paced_verl.launch.price import Price, refreshes
from paced_verl.pacing.pass_rates import PassRateTable
from paced_verl.pacing.schedule import Schedule, Stage
from paced_verl.targets.files import read_outcomes


@dataclass(frozen=True)
class Plan:
    """A run, resolved.

    Attributes:
        paced: The parsed block.
        schedule: Stages in steps; ``None`` where the length of the run is only known once the data are loaded.
        prompts: Rows of the training files before verl filters them; ``None`` where they are not local.
        batch: Prompts per step.
        n: verl's ``rollout.n``, responses per prompt on the student's own responses.
        pools: GPUs per pool.
        models: The student's model, and the teachers' by their names.
        verdicts: Settings that do not run as written.
        advice: What is recommended, by these settings and the pass rates that are known.
        capabilities: What shares the tokens, of the rows before verl filters them; ``None`` where nothing does, or the
            data are not local.
    """

    paced: PacedConfig
    schedule: Schedule | None
    prompts: int | None
    batch: int
    n: int
    pools: dict[str, int]
    models: dict[str, str]
    verdicts: list[Verdict]
    advice: list[str]
    capabilities: Capabilities | None

    @classmethod
    def of(cls, config: DictConfig, files: bool = True) -> Plan:
        """Settle a configuration in place, check it and resolve it.

        Args:
            config: verl's whole configuration, composed.
            files: Look at data, models and stored files, too.

        Raises:
            ConfigError: It cannot run as written.
        """
        paced, verdicts = check(config, files)
        batch, n = config.data.train_batch_size, config.actor_rollout_ref.rollout.n
        prompts = number_of_prompts(config) if files else None
        steps = config.trainer.total_training_steps
        if prompts is not None:
            most = prompts // batch * config.trainer.total_epochs
            steps = steps or most
            check_length(most, steps)
        schedule = paced.build_schedule(steps) if steps else None
        capabilities = None
        if prompts is not None and paced.capability is not None:
            capabilities = capabilities_of_files(config, paced.capability)
            if schedule is not None:
                check_probes(paced.capability, len(capabilities.names), schedule.rows(batch, n))
        return cls(
            paced=paced,
            schedule=schedule,
            prompts=prompts,
            batch=batch,
            n=n,
            pools=_pools(config, paced),
            models=_models(config),
            verdicts=verdicts,
            advice=list(recommend(paced, _known(paced, prompts, schedule, batch) if files else Known())),
            capabilities=capabilities,
        )

    def rows(self, stage: Stage) -> int:
        """Rows a step of a stage."""
        return self.batch * stage.responses_per_prompt(self.n)

    def refreshes(self) -> list[int]:
        """The steps before which all pass rates are estimated."""
        return [] if self.schedule is None else refreshes(self.paced, self.schedule)

    def __str__(self) -> str:
        return "\n".join(["paced-verl will run:", *(f"  {line}" for line in self._lines())])

    def _lines(self) -> list[str]:
        paced, weight = self.paced, self.paced.weight
        lines: list[str] = []
        if self.schedule is None:
            lines.append(
                "stages: the length of the run is known once the data are loaded (set trainer.total_training_steps)"
            )
        else:
            for stage in self.schedule.stages:
                lines += [str(stage), f"    {self._work(stage)}"]
        detail = {
            "beta": "α, β by moments" if weight.fit else f"α={weight.alpha:g}, β={weight.beta:g}",
            "hard_filter": f"{weight.low:g} ≤ p ≤ {weight.high:g}",
        }.get(weight.kernel, "")
        lines.append(
            f"weight: {weight.kernel} {detail}, {weight.estimate} estimate, mean 1 over all prompts".replace(" ,", ",")
        )
        if weight.teacher:
            meaning = {"gate": "0 unless r ≥ 1/2", "product": "times r", "min": "no more than r times the largest"}
            lines.append(f"teacher's own pass rate r: {weight.teacher}, {meaning[weight.teacher]}; {self._judged()}")
        lines.append(f"pass rates: {self._estimates()}")
        lines += self._price()
        lines += self._visits()
        lines += [f"advice: {sentence}" for sentence in self.advice]
        lines += self.sharing()
        sampler = paced.sampler
        unread = {verdict.key for verdict in self.verdicts}
        skips = sampler.skip_zero_weight and sampler.power == 0 and "paced.sampler.skip_zero_weight" not in unread
        own = "" if sampler.policy == "pass_rate" else f"{sampler.policy}, "
        lines.append(
            f"sampler: {own}{'uniform over prompts' if sampler.power == 0 else f'q ∝ w^{sampler.power:g}'}"
            f"{', prompts of weight 0 skipped' if skips else ''}"
            f"{f', {sampler.explore:.0%} uniform exploration' if sampler.explore else ''}"
        )
        lines.append(f"teacher: {self._teacher()}")
        if paced.tokens.select:
            lines.append(f"tokens: {paced.tokens.select}, {paced.tokens.keep:.0%} of each response")
        if paced.alignment.every_steps:
            lines.append(f"alignment: {self._alignment()}")
        if paced.route:
            route = paced.route
            lines.append(
                f"route: p ≥ {route.mastered:g} neither loss; p ≤ {route.hopeless:g} self-distillation under context "
                f"{route.context}; both losses between"
            )
        lines.append("GPUs: " + ", ".join(f"{pool} {count}" for pool, count in self.pools.items()))
        lines.append("models: " + ", ".join(f"{name} {path}" for name, path in self.models.items()))
        lines += map(str, self.verdicts)
        return lines

    def sharing(self) -> list[str]:
        """Who shares the tokens among capabilities, and what it costs to decide; nothing where nobody does."""
        shared = self.paced.capability
        if shared is None:
            return []
        decisions = None if self.schedule is None else shared.decisions(self.schedule.stages[-1].last)
        often = "" if decisions is None else f", {decisions} decision(s) in the run"
        lines = [f"capabilities: by {shared.column}, {shared.policy} decides every {shared.every_steps} steps{often}"]
        if shared.probe is None:
            lines.append("    probes: none")
        else:
            one = f"{shared.probe.prompts} prompts × {shared.probe.in_words} of each capability"
            total = ""
            if self.capabilities is not None and self.schedule is not None:
                names, rows = len(self.capabilities.names), self.schedule.rows(self.batch, self.n)
                asked = probe_responses(shared, names, len(rows))
                total = f"; {asked:,} responses for {names} capabilities in the run, beside {sum(rows):,} that train"
            lines.append(f"    probes: {one} a decision and after the last{total}; they are never trained")
        if shared.policy not in STATIC:
            lines.append(
                "    before you pay for it: `paced-verl capability headroom` says from a few short runs whether there "
                "is anything to gain by deciding"
            )
        if shared.budget is not None:
            lines.append(f"    budget: {shared.budget:,} tokens of responses; the run ends before it could need more")
        if shared.curriculum is not None:
            lines.append(f"    curriculum: levels of {shared.curriculum.column}, by {shared.curriculum.by}")
        return lines

    def _alignment(self) -> str:
        measured = self.paced.alignment
        limit = measured.budget.minutes
        return (
            f"after every {measured.every_steps} steps, {measured.questions} questions, "
            f"{measured.questions * measured.rollouts:,} free responses, and up to {measured.budget.rollouts:,} "
            f"continuations{f' or {limit:g} minutes' if limit else ''}, on the run's own servers; "
            f"contexts {', '.join(measured.contexts)}"
        )

    def _teacher(self) -> str:
        teacher = self.paced.teacher
        who = {
            "server": "vLLM teacher pool",
            "reference": "engine in the trainer's workers",
            "student": "the student's own rollout servers, its current weights",
        }[teacher.backend]
        what = "whole vocabulary" if teacher.topk == "full" else f"top-{teacher.topk} + tail"
        update = {
            "frozen": "",
            "ema": f", moving average of the student (decay {teacher.ema_decay:g})" if teacher.ema_decay else "",
            "every": f", the student's weights every {teacher.every_steps} steps",
        }[teacher.update]
        return f"{who}{update}, context {teacher.context}, {what}"

    def _work(self, stage: Stage) -> str:
        rows, steps = self.rows(stage), stage.last - stage.first + 1
        if stage.responses == "student":
            return (
                f"{self.n} rollout(s) per prompt, {rows} rows and teacher scorings per step; "
                f"{rows * steps} of each in the stage"
            )
        source = self.paced.targets.column or self.paced.targets.file
        origin = (
            f"from {source}, else written by the teacher" if source else "written by the teacher server once a prompt"
        )
        return (
            f"no rollouts, {rows} rows and teacher scorings per step; responses {origin}; "
            f"{rows * steps} scorings in the stage"
        )

    def _price(self) -> list[str]:
        """What the whole run generates and has scored."""
        if self.schedule is None or self.prompts is None:
            return []
        return list(Price.of(self.paced, self.schedule, self.prompts, self.batch, self.n).lines())

    def _visits(self) -> list[str]:
        """How often training sees each prompt, and a warning where its pass rate rests on too few of these visits."""
        rates, weight = self.paced.pass_rate, self.paced.weight
        reads_rates = rates.from_training and weight.source == "table" and weight.kernel != "uniform"
        if self.schedule is None or self.prompts is None or not reads_rates:
            return []
        last = self.schedule.stages[-1].last
        student = [self.schedule.at(step).responses == "student" for step in range(1, last + 1)]
        estimated = [0, *(step - 1 for step in self.refreshes() if step > 1), last]
        most = max(sum(student[start:end]) for start, end in itertools.pairwise(estimated)) * self.batch / self.prompts
        visits = sum(student) * self.batch / self.prompts
        lines = [f"visits: {sum(student)} student steps × {self.batch} / {self.prompts} prompts = {visits:.1f} of each"]
        if rates.refresh not in ("every", "draw") and most < 3:
            lines.append(
                f"warning: {most:.1f} visits between estimates, and a pass rate learned from less than 3 lags behind "
                "the student; only another estimate helps (paced.pass_rate.refresh=every)"
            )
        return lines if any(student) else []

    def _judged(self) -> str:
        """Which responses of the teacher its own pass rate is known from."""
        paced = self.paced
        sampled = (
            f"{paced.pass_rate.teacher_samples} of its responses a prompt" if paced.pass_rate.teacher_samples else ""
        )
        stored = paced.targets.file or ""
        writes = any(stage.responses == "teacher" for stage in paced.schedule)
        sources = [source for source in (stored, sampled, "what it writes to train on" if writes else "") if source]
        return f"known from {', '.join(sources)}"

    def _estimates(self) -> str:
        settings, due = self.paced.pass_rate, self.refreshes()
        parts = [f"from {settings.file}"] if settings.file else []
        if settings.refresh == "draw":
            again = f", again after {settings.max_age} steps" if settings.max_age else ""
            parts.append(
                f"K={settings.samples} at temperature {settings.temperature:g} of what is about to be drawn, "
                f"{settings.ahead} batch(es) ahead{again},"
            )
        if due:
            total = "" if self.prompts is None else f", {self.prompts * settings.samples} rollouts each time"
            where = ", ".join(map(str, due)) if len(due) <= 6 else f"{due[0]}, {due[1]}, … ({len(due)} times)"
            parts.append(f"K={settings.samples} at temperature {settings.temperature:g} before step {where}{total}")
        if settings.from_training:
            parts.append("and for free from training rollouts" if parts else "for free from training rollouts")
        return " ".join(parts) or "none"


def _pools(config: DictConfig, paced: PacedConfig) -> dict[str, int]:
    """GPUs by what runs on them."""
    separate = config.trainer.v1.trainer_mode == "paced_separate_async"
    pools = {
        "trainer" if separate else "trainer + student vLLM": config.trainer.n_gpus_per_node * config.trainer.nnodes
    }
    if separate:
        rollout = config.actor_rollout_ref.rollout
        pools["student vLLM"] = rollout.n_gpus_per_node * rollout.nnodes
    if paced.teacher.backend == "server":
        pools["teacher vLLM"] = config.distillation.n_gpus_per_node * config.distillation.nnodes
    return pools


def _known(paced: PacedConfig, prompts: int | None, schedule: Schedule | None, batch: int) -> Known:
    """What files say of the run; the checks have found what is there to be readable."""
    table, targets = (
        Path(file) if file is not None and Path(file).is_file() else None
        for file in (paced.pass_rate.file, paced.targets.file)
    )
    return Known(
        table=PassRateTable.load(table) if table else None,
        judged=read_outcomes(targets) if targets else None,
        prompts=prompts,
        draws=schedule.stages[-1].last * batch if schedule else None,
    )


def _models(config: DictConfig) -> dict[str, str]:
    return {"student": config.actor_rollout_ref.model.path, **teacher_paths(config)}
