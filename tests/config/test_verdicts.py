"""Every setting of verl that a paced run does not run as written is replaced or ignored, and said so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import verl
from omegaconf import DictConfig, OmegaConf

from paced_verl.checks import check
from paced_verl.config import ConfigError
from paced_verl.config.verdicts import Verdict
from paced_verl.launch.hydra import PacedCallback, compose, describe
from paced_verl.names import MANAGER

LOSS = "distillation.distillation_loss"
TEACHER = ("distillation.teacher_models.teacher_model.model_path=T", "distillation.n_gpus_per_node=2",
           "distillation.nnodes=1")  # fmt: skip
ON_POLICY = "paced.schedule=[{until:1.0,divergence:reverse_kl,responses:student}]"


def composed(*overrides: str, group: str = "two_stage") -> DictConfig:
    return compose([f"+paced={group}", "actor_rollout_ref.rollout.name=vllm",
                    "actor_rollout_ref.actor.ppo_mini_batch_size=64", "actor_rollout_ref.actor.use_dynamic_bsz=True",
                    "actor_rollout_ref.rollout.log_prob_use_dynamic_bsz=True", "trainer.n_gpus_per_node=8",
                    "actor_rollout_ref.ref.log_prob_use_dynamic_bsz=True", *TEACHER, *overrides])  # fmt: skip


def verdicts(*overrides: str) -> list[Verdict]:
    config = composed(*overrides)
    _, found = check(config, files=False)
    return found


def test_a_run_as_the_group_sets_it_has_nothing_to_say() -> None:
    assert verdicts("data.dataloader_num_workers=0") == []


@pytest.mark.parametrize(
    ("key", "value", "becomes"),
    [
        ("trainer.use_v1", False, True),
        ("trainer.v1.trainer_mode", "sync", "paced_sync"),
        ("trainer.v1.trainer_mode", "colocate_async", "paced_colocate_async"),
        ("distillation.enabled", False, True),
        (f"{LOSS}.loss_mode", "k1", "paced"),
        (f"{LOSS}.topk", 32, 64),
        (f"{LOSS}.use_policy_gradient", True, False),
        (f"{LOSS}.log_prob_min_clamp", -10.0, None),
        (f"{LOSS}.use_chunked_topk", True, False),
        ("actor_rollout_ref.rollout.agent.agent_loop_manager_class", None, MANAGER),
        ("actor_rollout_ref.model.use_fused_kernels", True, False),
        ("actor_rollout_ref.rollout.calculate_log_probs", True, False),
        ("actor_rollout_ref.actor.use_kl_loss", True, False),
        ("actor_rollout_ref.actor.entropy_coeff", 0.001, 0),
        ("algorithm.use_kl_in_reward", True, False),
        ("algorithm.adv_estimator", "gae", "grpo"),
        ("critic.enable", True, False),
        ("trainer.critic_warmup", 3, 0),
        ("trainer.max_actor_ckpt_to_keep", 1, 2),
    ],
)
def test_what_a_paced_run_needs_otherwise_is_replaced(key: str, value: Any, becomes: Any) -> None:
    written = "null" if value is None else value
    plus = "+" * (key == f"{LOSS}.use_chunked_topk")
    config = composed(f"{plus}{key}={written}", "data.dataloader_num_workers=0")
    _, (verdict,) = check(config, files=False)
    shown = "null" if becomes is None else becomes
    assert str(verdict).startswith(f"replaced: {key}: {written} → {shown} (")
    assert OmegaConf.select(config, key) == becomes
    assert check(config, files=False)[1] == [], "a settled configuration has nothing left to replace"


@pytest.mark.parametrize("subset", ["data.train_max_samples=100", "data.val_max_samples=100"])
def test_a_subset_without_a_seed_gets_one(subset: str) -> None:
    """verl draws it with an unseeded generator, so that every start, and every resume, would have other prompts."""
    (verdict,) = verdicts("data.dataloader_num_workers=0", subset)
    assert str(verdict).startswith("replaced: data.seed: null → 1 (")
    assert verdicts("data.dataloader_num_workers=0", subset, "data.seed=7") == []


@pytest.mark.parametrize(("micro", "becomes"), [(10, 8), (8, None), (3, 2), (16, 8)])
def test_a_micro_batch_divides_what_every_stage_trains_on_a_rank(micro: int, becomes: int | None) -> None:
    """64 rows of teacher responses on 8 ranks: 8 each; 320 of the student's: 40 each."""
    found = verdicts("actor_rollout_ref.actor.use_dynamic_bsz=False", "actor_rollout_ref.rollout.n=5",
                     f"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={micro}",
                     "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=1",
                     "data.dataloader_num_workers=0")  # fmt: skip
    assert [verdict.becomes for verdict in found] == ([] if becomes is None else [becomes])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("actor_rollout_ref.actor.policy_loss.loss_mode=gspo", "ignored: actor_rollout_ref.actor.policy_loss="),
        ("actor_rollout_ref.actor.clip_ratio_high=0.28", "ignored: actor_rollout_ref.actor.clip_ratio_high=0.28"),
        ("algorithm.rollout_correction.bypass_mode=true", "ignored: algorithm.rollout_correction="),
        (f"{LOSS}.clip_ratio=0.3", f"ignored: {LOSS}.clip_ratio=0.3 (only verl's own losses"),
        (f"{LOSS}.distillation_loss_coef=0.5", f"ignored: {LOSS}.distillation_loss_coef=0.5"),
        ("data.shuffle=False", "ignored: data.shuffle=False"),
        ("paced.weight.low=0.1", "ignored: paced.weight.low=0.1"),
        ("paced.targets.endpoint={url: 'https://x/v1', model: m}", "ignored: paced.targets.endpoint=https://x/v1"),
    ],
)
def test_what_nothing_reads_is_ignored_and_said(override: str, words: str) -> None:
    (verdict,) = verdicts("data.dataloader_num_workers=0", override)
    assert str(verdict).startswith(words)


@pytest.mark.parametrize(
    "override",
    [
        "actor_rollout_ref.actor.use_kl_loss=True",
        "actor_rollout_ref.actor.entropy_coeff=0.001",
        "actor_rollout_ref.actor.clip_ratio_high=0.28",
        "algorithm.adv_estimator=rloo",
        "algorithm.use_kl_in_reward=True",
        "actor_rollout_ref.rollout.calculate_log_probs=True",
    ],
)
def test_beside_a_task_reward_verls_rl_settings_run_as_written(override: str) -> None:
    rl = (ON_POLICY, f"{LOSS}.use_task_rewards=True", "data.dataloader_num_workers=0")
    assert [v for v in verdicts(*rl, override) if "skip_zero_weight" not in v.key] == []


def test_strict_refuses_what_would_be_replaced_or_ignored() -> None:
    for override in (f"{LOSS}.loss_mode=k1", "data.shuffle=False"):
        with pytest.raises(ConfigError, match=f"{override.split('=')[0]}.*strict: true"):
            verdicts(override, "paced.strict=true", "data.dataloader_num_workers=0")


def test_self_distillation_does_not_load_a_teacher_that_a_command_names() -> None:
    text = describe(composed("paced.teacher.context=answer", group="self_distillation"), files=False)
    assert "ignored: distillation.teacher_models.teacher_model.model_path=T" in text
    assert "models: student ~/models/deepseek-llm-7b-chat, teacher_model ~/models/deepseek-llm-7b-chat" in text


def test_the_plan_says_it_and_names_the_models() -> None:
    text = describe(composed(f"{LOSS}.loss_mode=k1"), files=False)
    assert f"replaced: {LOSS}.loss_mode: k1 → paced (the stage names its divergence" in text
    assert "models: student ~/models/deepseek-llm-7b-chat, teacher_model T" in text


REFUSED = [
    ("data.train_batch_size=0", "data.train_batch_size=0"),
    ("data.train_batch_size=null", "data.train_batch_size=null"),
    ("data.train_batch_size=32.5", "data.train_batch_size=32.5"),
    ("actor_rollout_ref.rollout.n=0", "rollout.n=0"),
    ("actor_rollout_ref.rollout.n=-1", "rollout.n=-1"),
    ("actor_rollout_ref.rollout.n=2.5", "rollout.n=2.5"),
    ("actor_rollout_ref.rollout.n=null", "rollout.n=null"),
    ("actor_rollout_ref.rollout.n=true", "rollout.n=true"),
    ("actor_rollout_ref.actor.ppo_mini_batch_size=0", "ppo_mini_batch_size=0"),
    ("actor_rollout_ref.actor.ppo_mini_batch_size=2048", "exceeds data.train_batch_size=1024"),
    ("trainer.total_training_steps=0", "total_training_steps=0"),
    ("trainer.total_training_steps=abc", "total_training_steps=abc"),
    ("trainer.total_epochs=0", "total_epochs=0"),
    ("data.max_prompt_length=0", "max_prompt_length=0"),
    ("data.max_response_length=0", "max_response_length=0"),
    ("distillation.n_gpus_per_node=-1", "n_gpus_per_node=-1"),
    ("distillation.n_gpus_per_node=3", "per_replica_world_size (2) must divide"),
    ("distillation.teacher_models.teacher_model.inference.data_parallel_size=0", "data_parallel_size=0"),
    ("distillation.teacher_models.teacher_model.inference.max_model_len=0", "max_model_len=0"),
    ("distillation.teacher_models.teacher_model.inference.name=hf", "inference.name=hf"),
    ("actor_rollout_ref.rollout.tensor_model_parallel_size=3", "does not divide the 8 GPU(s)"),
    ("actor_rollout_ref.rollout.max_model_len=0", "max_model_len=0"),
    ("actor_rollout_ref.rollout.name=sglang", "rollout.name=sglang"),
    ("actor_rollout_ref.rollout.name=trtllm", "rollout.name=trtllm"),
    ("actor_rollout_ref.rollout.temperature=0.6", "rollout.temperature=0.6"),
    ("actor_rollout_ref.rollout.agent.default_agent_loop=nope", "default_agent_loop=nope"),
    ("actor_rollout_ref.rollout.agent.agent_loop_manager_class=x.Y", "agent_loop_manager_class=x.Y"),
    ("actor_rollout_ref.actor.loss_agg_mode=foo", "Invalid loss_agg_mode: foo"),
    ("actor_rollout_ref.actor.ppo_max_token_len_per_gpu=50", "ppo_max_token_len_per_gpu=50"),
    ("actor_rollout_ref.actor.optim.lr=nan", "optim.lr=nan"),
    ("actor_rollout_ref.actor.optim.lr=-1", "optim.lr=-1"),
    (f"{LOSS}.loss_max_clamp=-1", "loss_max_clamp=-1"),
    (f"{LOSS}.loss_max_clamp=nan", "loss_max_clamp=nan"),
    (f"{LOSS}.distillation_loss_coef=-1", "distillation_loss_coef=-1"),
    ("algorithm.adv_estimator=foo", "adv_estimator=foo"),
    ("algorithm.adv_estimator=paced", "adv_estimator=paced"),
    ("trainer.v1.trainer_mode=fully_async", "trainer_mode=fully_async"),
    ("trainer.v1.trainer_mode=separate_async", "rollouts need GPUs of their own"),
    ("trainer.v1.trainer_mode=null", "trainer_mode=None"),
    ("trainer.resume_mode=foo", "resume_mode=foo"),
    ("trainer.resume_mode=resume_path", "resume_from_path=None"),
    ("actor_rollout_ref.hybrid_engine=False", "hybrid_engine=False"),
    ("actor_rollout_ref.actor.policy_loss.loss_mode=nope", "loss_mode=nope"),
    ("actor_rollout_ref.actor.ulysses_sequence_parallel_size=0", "ulysses_sequence_parallel_size=0"),
    ("actor_rollout_ref.actor.ulysses_sequence_parallel_size=3", "does not divide the trainer's 8 GPU(s)"),
    ("actor_rollout_ref.actor.ppo_mini_batch_size=60", "8 data-parallel rank(s) cannot share out"),
    ("actor_rollout_ref.actor.ppo_max_token_len_per_gpu=null", "ppo_max_token_len_per_gpu=null"),
    ("actor_rollout_ref.actor.ppo_epochs=0", "ppo_epochs=0"),
    ("actor_rollout_ref.actor.grad_clip=nan", "grad_clip=nan"),
    ("actor_rollout_ref.rollout.data_parallel_size=0", "data_parallel_size=0"),
    ("actor_rollout_ref.rollout.max_model_len=50", "max_model_len=50: a prompt and its response may have 1024"),
    ("actor_rollout_ref.rollout.gpu_memory_utilization=1.5", "gpu_memory_utilization=1.5"),
    ("actor_rollout_ref.rollout.top_p=0", "top_p=0"),
    ("actor_rollout_ref.rollout.agent.num_workers=0", "num_workers=0"),
    ("actor_rollout_ref.model.lora_rank=-1", "lora_rank=-1"),
    ("distillation.teacher_models.teacher_model.num_replicas=7", "num_replicas=7"),
    ("data.train_max_samples=0", "train_max_samples=0"),
    ("data.train_max_samples=-5", "train_max_samples=-5"),
    ("data.val_max_samples=0", "val_max_samples=0"),
    ("data.seed=abc", "data.seed=abc"),
    ("data.gen_batch_size=3", "does not divide data.train_batch_size"),
    ("model_engine=megatron", "model_engine=megatron"),
    ("model_engine=veomni", "model_engine=veomni"),
    ("model_engine=torchtitan", "model_engine=torchtitan"),
]  # fmt: skip


@pytest.mark.parametrize(("override", "words"), REFUSED)
def test_what_a_person_must_decide_or_would_fail_is_refused_in_a_sentence(override: str, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        describe(composed(override), files=False)
    assert words in str(error.value)
    assert "Traceback" not in str(error.value)


def test_a_device_that_this_machine_was_not_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    for platform, device in (("cpu", "cuda"), ("", "cpu"), ("", "tpu")):
        monkeypatch.setenv("VERL_PLATFORM", platform)
        monkeypatch.setattr("paced_verl.launch.hydra.describe", lambda config: "")
        with pytest.raises(SystemExit, match=f"trainer.device={device}"):
            PacedCallback().on_run_start(composed(f"trainer.device={device}"))


def test_whatever_goes_wrong_in_a_check_ends_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra would make a warning of it, and verl would start."""
    monkeypatch.setattr("paced_verl.launch.hydra.describe", lambda config: 1 // 0)
    with pytest.raises(SystemExit) as stop:
        PacedCallback().on_run_start(composed())
    assert "could not be checked: ZeroDivisionError" in str(stop.value)
    assert "Nothing was started" in str(stop.value)


@pytest.mark.parametrize(
    ("platform", "override", "forked"),
    [
        ("cpu", "", True),
        ("", "", False),
        ("cpu", "+ray_kwargs.ray_init.address=auto", False),
        ("cpu", "+ray_kwargs.ray_init.runtime_env.py_executable=python", False),
    ],
)
def test_workers_of_a_cpu_machine_are_forked_unless_ray_is_not_ours(
    monkeypatch: pytest.MonkeyPatch, platform: str, override: str, forked: bool
) -> None:
    monkeypatch.setenv("VERL_PLATFORM", platform)
    monkeypatch.setattr("paced_verl.launch.hydra.describe", lambda config: "")
    config = composed(f"trainer.device={platform or 'cuda'}", *[override] * bool(override))
    PacedCallback().on_run_start(config)
    python = OmegaConf.select(config, "ray_kwargs.ray_init.runtime_env.py_executable") or ""
    assert ("forked_python.py" in python) is forked


def test_several_runs_at_once_are_refused() -> None:
    with pytest.raises(SystemExit, match="--multirun"):
        PacedCallback().on_multirun_start(composed())


def launch(module: str, *overrides: str, by_path: bool = False) -> subprocess.CompletedProcess[str]:
    file = Path(verl.__file__).parents[1].joinpath(*module.split(".")).with_suffix(".py")
    command = [sys.executable, *([str(file)] if by_path else ["-m", module]), "+paced=two_stage", *overrides]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("by_path", [False, True])
def test_another_launcher_of_verls_is_refused(by_path: bool) -> None:
    result = launch("verl.experimental.one_step_off_policy.main_ppo", by_path=by_path)
    assert result.returncode != 0
    assert "verl.experimental.one_step_off_policy.main_ppo runs trainers of its own" in result.stderr


def test_verls_own_validation_sees_the_settled_configuration(tmp_path: Path) -> None:
    """The launcher: what is replaced reaches verl, which would refuse k1 without a policy gradient."""
    result = launch("verl.trainer.main_ppo", "+machine=cpu", f"{LOSS}.loss_mode=k1", *TEACHER,
                    f"data.train_files={tmp_path}/none.parquet", "distillation.n_gpus_per_node=1",
                    "trainer.default_local_dir='${hydra:runtime.output_dir}/checkpoints'")  # fmt: skip
    assert result.returncode != 0
    assert "none.parquet does not exist" in result.stderr
    assert "ray init" not in result.stdout
