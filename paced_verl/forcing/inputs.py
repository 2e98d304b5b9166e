"""What the overrides of a run say of a measurement, what that will cost, and the measurement itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from verl.trainer.ppo.reward import get_custom_reward_fn
from verl.trainer.ppo.utils import create_rl_dataset
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.reward_score import default_compute_score

from paced_verl.alignment.visits import LEAST
from paced_verl.checks.models import server_limits
from paced_verl.config import AlignmentConfig, ConfigError, PacedConfig
from paced_verl.config.wiring import teacher_paths
from paced_verl.fingerprint import fingerprint_of
from paced_verl.forcing.ask import Policy, Student
from paced_verl.forcing.lengths import TooLong, refuse_long_for_student, too_long
from paced_verl.forcing.questions import Question, Teacher, choose_prompts, teachers
from paced_verl.forcing.run import Measurement, Scoring
from paced_verl.forcing.store import Store
from paced_verl.pacing.pass_rates import PassRateTable
from paced_verl.targets.judge import Judge
from paced_verl.teacher.context import TeacherContext
from paced_verl.teacher.prompts import Prompts
from paced_verl.teacher.servers import Servers

SAMPLING = {"temperature": 1.0, "top_p": 1.0, "top_k": -1}
"""As the probabilities are that servers say: those of the model itself."""


@dataclass(frozen=True)
class Inputs:
    """A measurement, resolved; nothing has been started.

    Attributes:
        settings: What is measured.
        questions: Of what.
        teachers: Whose losses.
        prompts: Of the teachers.
        judge: Says what is correct.
        policy: What is sampled from.
        vocabulary: Tokens of the student.
        seed: Of questions and positions.
        names: What determines the measurement, for its folder.
        solution_key: Of the solution in ``extra_info``.
        too_long: What may not fit, by teacher.
    """

    settings: AlignmentConfig
    questions: list[Question]
    teachers: list[Teacher]
    prompts: Prompts
    judge: Judge
    policy: Policy
    vocabulary: int
    seed: int
    names: dict[str, Any]
    solution_key: str
    too_long: list[TooLong]

    def __str__(self) -> str:
        """What will be done, and what that costs at most."""
        settings, count = self.settings, len(self.questions)
        free = count * settings.rollouts
        nodes = count * settings.nodes
        forced = nodes * settings.tokens * settings.visits
        length = self.policy.response_length
        scored = min(nodes, free)
        limits = [f"{amount:,} {name}" for name in ("rollouts", "tokens") if (amount := getattr(settings.budget, name))]
        limits += [f"{settings.budget.minutes:g} minutes"] if settings.budget.minutes else []
        return (
            f"{count} questions, {settings.rollouts} free responses each: {free:,} of up to {length} tokens\n"
            f"{nodes:,} nodes, up to {settings.tokens} tokens each, {settings.visits} visits a token: at most "
            f"{forced:,} forced continuations; the budget ends it after {' or '.join(limits) or 'all of them'}\n"
            f"teachers, on up to {scored:,} responses each: {', '.join(one.name for one in self.teachers)}; that know "
            f"nothing: {', '.join(settings.nulls) or 'none'}" + "".join(f"\n{one}" for one in self.too_long)
        )

    def measurement(self, servers: Servers, out: Path) -> Measurement:
        """With servers that run, in a folder.

        Raises:
            PacedError: The folder holds another measurement.
        """
        by_key: dict[str | None, Any] = {None: servers.student}
        by_key |= dict.fromkeys([one.key for one in self.teachers if one.key is not None], servers.teacher)
        return Measurement(
            self.settings,
            self.questions,
            Student(servers.student, self.judge, self.policy),
            Scoring(self.teachers, by_key, self.prompts, self.solution_key),
            Store(out, self.names),
            self.vocabulary,
            self.seed,
        )


def resolve(config: DictConfig, paced: PacedConfig, dataset: Any = None) -> Inputs:
    """What is to be measured.

    Args:
        config: verl's whole configuration, settled and checked.
        paced: Its ``paced`` block, parsed.
        dataset: verl's training data, where they are at hand.

    Raises:
        ConfigError: There is no teacher, a prompt lacks what verifier or context needs, a server reads too little of
            any, or the budget buys nothing.
    """
    settings = paced.alignment
    model = omega_conf_to_dataclass(config.actor_rollout_ref.model)
    if dataset is None:
        dataset = create_rl_dataset(config.data.train_files, config.data, model.tokenizer, model.processor,
                                    is_train=True, max_samples=config.data.get("train_max_samples", -1))  # fmt: skip
    fingerprint = fingerprint_of(dataset)
    table = PassRateTable.load(Path(paced.pass_rate.file), len(dataset), fingerprint) if paced.pass_rate.file else None
    paths = teacher_paths(config) if paced.teacher.backend == "server" else {}
    limits = server_limits(config)
    contexts = [TeacherContext(name, paced.teacher.solution_key) for name in settings.contexts]
    # With one teacher verl reads no key.
    keys = {name: str(config.distillation.teacher_models[name].key) if len(paths) > 1 else name for name in paths}
    everyone = teachers(keys, contexts, limits)
    prompts = Prompts.of(config, model)
    seed = paced.sampler.seed
    chosen = choose_prompts(len(dataset), table, settings.questions, seed)
    rates = table.rates() if table is not None else None
    questions = []
    for prompt in chosen:
        row = dataset[prompt]
        _usable(row, prompt, everyone)
        rate = float(rates[prompt]) if rates is not None else math.nan
        questions.append(Question(prompt, row, tuple(prompts.student(row)), rate))
    _affordable(settings, len(questions))
    response_length = config.actor_rollout_ref.rollout.response_length
    refuse_long_for_student(questions, limits.get(None), response_length)
    return Inputs(
        settings=settings,
        questions=questions,
        teachers=everyone,
        prompts=prompts,
        judge=Judge(model.tokenizer, get_custom_reward_fn(config) or default_compute_score, paced.pass_rate.threshold),
        policy=Policy(response_length, _ends(model), SAMPLING),
        vocabulary=len(model.tokenizer),  # verl's servers say no others
        seed=seed,
        names={
            "data": fingerprint,
            "prompts": chosen,
            "student": config.actor_rollout_ref.model.path,
            "teachers": paths,
            "contexts": list(settings.contexts),
            "seed": seed,
            "response_length": response_length,
            **settings.model_dump(include={"rollouts", "nodes", "threshold", "tokens"}),
        },
        solution_key=paced.teacher.solution_key,
        too_long=too_long(questions, everyone, prompts, response_length, paced.teacher.solution_key),
    )


def _ends(model: Any) -> frozenset[int]:
    """Tokens that end a response, as vLLM knows them: the tokenizer's and those of the generation configuration."""
    own = model.generation_config.eos_token_id if model.generation_config is not None else None
    more = own if isinstance(own, list) else [own]
    return frozenset(int(token) for token in (model.tokenizer.eos_token_id, *more) if token is not None)


def _usable(row: Mapping[str, Any], prompt: int, everyone: list[Teacher]) -> None:
    """Refuse a prompt that nobody can judge, or that lacks what a teacher is to be shown."""
    truth = (row.get("reward_model") or {}).get("ground_truth")
    if truth is None:
        raise ConfigError(
            f"prompt {prompt} of data.train_files has no reward_model.ground_truth: nobody can say whether a "
            "continuation of it succeeds. Leave such prompts out."
        )
    for teacher in everyone:
        try:
            teacher.context.messages(row, dict.fromkeys(teacher.context.needs, "…"))
        except Exception as error:
            raise ConfigError(f"prompt {prompt} of data.train_files, for {teacher.name}: {error}") from None


def _affordable(settings: AlignmentConfig, questions: int) -> None:
    least = questions * 2 * min(LEAST, settings.visits)
    if settings.budget.rollouts is not None and settings.budget.rollouts < least:
        raise ConfigError(
            f"paced.alignment.budget.rollouts={settings.budget.rollouts} does not pay for one node a question: "
            f"{questions} questions × 2 tokens × {min(LEAST, settings.visits)} visits are {least}. Raise it, or ask "
            "fewer paced.alignment.questions."
        )
