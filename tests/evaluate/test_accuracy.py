"""verl writes the dump and says what its accuracy is; paced-verl reads the one and must agree with the other."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
from omegaconf import DictConfig

from paced_verl.evaluate import EvaluationError
from paced_verl.evaluate.accuracy import launch_arguments, read_dump, without_paced
from paced_verl.statistics import estimate

SAMPLES = 4


def dump(folder: Path, answers: dict[str, list[float | None]], outputs: int = 1) -> Path:
    """A dump as verl writes it, of each problem's rewards; a reward of None was not to be had."""
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer

    found = [
        (f"{problem}_{sample}_{output}", reward)
        for problem, rewards in answers.items()
        for sample, reward in enumerate(rewards)
        for output in range(outputs)
        if reward is not None
    ]
    scores = [reward for _, reward in found]
    extra = {"reward": scores, "acc": [np.float64(score) for score in scores], "uid": [uid for uid, _ in found]}
    texts = ["a"] * len(found)
    PPOTrainer._write_generations(texts, texts, texts, scores, extra, str(folder), 0)
    return folder / "0.jsonl"


def verl_says(answers: dict[str, list[float | None]]) -> float:
    from verl.trainer.ppo.metric_utils import process_validation_metrics

    found = [(problem, r) for problem, rewards in answers.items() for r in rewards if r is not None]
    metrics = process_validation_metrics(
        ["maths"] * len(found),
        [problem for problem, _ in found],
        {"reward": [r for _, r in found], "acc": [r for _, r in found]},
        expected_acc_counts={("maths", problem): SAMPLES for problem in answers},
    )
    return metrics["maths"]["acc"][f"mean@{SAMPLES}"]


@pytest.fixture
def answers() -> dict[str, list[float | None]]:
    rng = np.random.default_rng(0)
    rates = rng.uniform(size=20)
    return {str(uuid.UUID(int=i)): list((rng.uniform(size=SAMPLES) < p).astype(float)) for i, p in enumerate(rates)}


def test_problems_are_the_units_and_the_mean_is_verls(tmp_path: Path, answers: dict[str, Any]) -> None:
    problems = read_dump(dump(tmp_path, answers), SAMPLES, threshold=0.5)
    assert problems.missing == 0
    assert sorted(problems.accuracies) == sorted(sum(rewards) / SAMPLES for rewards in answers.values())
    found = estimate(problems.accuracies)
    assert found.units == 20
    assert found.mean == pytest.approx(verl_says(answers), abs=1e-12)
    # Samples of a problem are alike, so 80 of them are worth less than 80 independent ones.
    assert found.standard_error > estimate(np.concatenate(list(answers.values()))).standard_error


def test_samples_that_verl_could_not_get_count_as_wrong(tmp_path: Path, answers: dict[str, Any]) -> None:
    first, second, *_ = answers
    answers[first] = [None, None, 1.0, 1.0]
    answers[second][0] = None
    problems = read_dump(dump(tmp_path, answers), SAMPLES, threshold=0.5)
    assert problems.missing == 3
    assert problems.accuracies.mean() == pytest.approx(verl_says(answers), abs=1e-12)


def test_a_sample_of_several_outputs_counts_once(tmp_path: Path, answers: dict[str, Any]) -> None:
    once = read_dump(dump(tmp_path / "one", answers), SAMPLES, threshold=0.5)
    often = read_dump(dump(tmp_path / "three", answers, outputs=3), SAMPLES, threshold=0.5)
    assert (once.accuracies == often.accuracies).all()
    assert often.missing == 0


def test_a_threshold_decides_where_rewards_are_fractions(tmp_path: Path) -> None:
    file = dump(tmp_path, {"p": [0.2, 0.6, 0.7, 0.9]})
    assert [float(read_dump(file, SAMPLES, t).accuracies[0]) for t in (0.1, 0.65, 0.95)] == [1.0, 0.5, 0.0]


def test_a_dump_of_other_samples_is_refused(tmp_path: Path, answers: dict[str, Any]) -> None:
    with pytest.raises(EvaluationError, match=r"4 samples of a problem, expected 2"):
        read_dump(dump(tmp_path, answers), 2, threshold=0.5)
    with pytest.raises(EvaluationError, match="sampled nothing"):
        read_dump(dump(tmp_path / "empty", {}), SAMPLES, threshold=0.5)


OVERRIDES = [
    "data.train_files=train.parquet",
    "data.max_response_length=77",
    "+paced=two_stage",
    "paced.weight.estimate=posterior",
    "distillation.teacher_models.teacher_model.model_path=/teacher",
    "reward.custom_reward_function.path=pkg://paced_verl.tasks.reward",
    "trainer.resume_mode=auto",
    "data.val_max_samples=10",
]


def composed(overrides: list[str], folder: Path, config_path: Path | None = None) -> DictConfig:
    """The configuration that verl's launcher would make of the command."""
    arguments = launch_arguments(
        overrides,
        model="/the model's",
        file=folder / "a=b, c.parquet",
        folder=folder / "out",
        samples=8,
        temperature=0.6,
        top_p=0.95,
        config_name="mine" if config_path else "ppo_trainer",
        config_path=config_path,
    )
    at = arguments.index("--config-name")
    where, (_, name, *rest) = arguments[:at], arguments[at:]
    start = (
        hydra.initialize_config_dir(where[1], version_base=None)
        if where
        else hydra.initialize_config_module("verl.trainer.config", version_base=None)
    )
    with start:
        return hydra.compose(name, rest)


def check(config: DictConfig, folder: Path) -> None:
    assert "paced" not in config
    assert not config.distillation.enabled
    assert config.trainer.v1.trainer_mode == "sync"
    assert config.actor_rollout_ref.rollout.agent.get("agent_loop_manager_class") is None
    assert config.trainer.val_only
    assert config.trainer.val_before_train
    assert config.trainer.resume_mode == "disable"
    assert config.data.val_max_samples == -1
    assert config.actor_rollout_ref.model.path == "/the model's"
    assert list(config.data.val_files) == [str(folder / "a=b, c.parquet")]
    sampling = config.actor_rollout_ref.rollout.val_kwargs
    assert (sampling.n, sampling.do_sample, sampling.temperature, sampling.top_p) == (8, True, 0.6, 0.95)


def test_verl_runs_the_same_configuration_without_paced(tmp_path: Path) -> None:
    config = composed(OVERRIDES, tmp_path)
    check(config, tmp_path)
    assert config.data.max_response_length == 77
    assert config.reward.custom_reward_function.path == "pkg://paced_verl.tasks.reward"


def test_an_asynchronous_run_is_evaluated_on_the_trainers_gpus(tmp_path: Path) -> None:
    rollout = "actor_rollout_ref.rollout"
    asynchronous = ["actor_rollout_ref.hybrid_engine=False", f"{rollout}.nnodes=1", f"{rollout}.n_gpus_per_node=4"]
    config = composed([*asynchronous, "trainer.v1.trainer_mode=separate_async"], tmp_path)
    check(config, tmp_path)
    assert config.actor_rollout_ref.hybrid_engine
    assert config.actor_rollout_ref.rollout.nnodes == 0


def test_a_run_that_never_was_paced_can_be_evaluated(tmp_path: Path) -> None:
    check(composed(["data.train_files=train.parquet"], tmp_path), tmp_path)


def test_paced_among_the_defaults_of_a_file_is_taken_out(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "defaults:\n  - ppo_trainer\n  - paced: two_stage\n  - _self_\ndata: {max_response_length: 78}\n"
    )
    config = composed(["paced.weight.alpha=2"], tmp_path, config_path=tmp_path)
    check(config, tmp_path)
    assert config.data.max_response_length == 78


def test_only_what_is_about_paced_is_left_out() -> None:
    kept = ["trainer.experiment_name=paced", "+machine=cpu", "~data.x", "data.files=[paced,b]"]
    assert without_paced(["+paced=uniform", *kept, "paced.targets.file=a.parquet", "++paced.targets.keep=all"]) == kept
