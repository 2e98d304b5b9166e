"""Promise 7: bad input is one clear message, where the configuration is composed and before Ray starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import DictConfig, open_dict
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from paced_verl.checks import check
from paced_verl.config import ConfigError
from paced_verl.launch.hydra import compose
from paced_verl.launch.plan import Plan
from paced_verl.pacing.pass_rates import PassRateTable

ROWS = 12


def write_model(folder: Path, words: list[str], vocab_size: int = 100, positions: int = 256) -> Path:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<unk>", *words])}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        chat_template="{% for m in messages %}{{ m['content'] }} {% endfor %}",
    )
    fast.save_pretrained(folder)
    sizes = {"model_type": "qwen3", "vocab_size": vocab_size, "max_position_embeddings": positions}
    (folder / "config.json").write_text(json.dumps(sizes))
    return folder


def write_data(path: Path, **replaced: object) -> Path:
    columns: dict[str, object] = {
        "data_source": ["openai/gsm8k"] * ROWS,
        "prompt": [[{"role": "user", "content": f"problem {i}"}] for i in range(ROWS)],
        "reward_model": [{"style": "rule", "ground_truth": "4"}] * ROWS,
        "extra_info": [{"index": i, "solution": "two and two " * 5} for i in range(ROWS)],
    }
    columns |= replaced
    pq.write_table(pa.table({name: column for name, column in columns.items() if column is not None}), path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_data(folder / "train.parquet")
    write_model(folder / "student", ["problem", "two", "and"])
    write_model(folder / "teacher", ["problem", "two", "and"])
    write_model(folder / "stranger", ["problem", "two", "other"])
    return folder


def overrides_of(folder: Path, *overrides: str, group: str = "two_stage") -> list[str]:
    return [
        f"+paced={group}",
        "+machine=cpu",
        f"data.train_files={folder}/train.parquet",
        f"data.val_files={folder}/train.parquet",
        "data.train_batch_size=4",
        "data.max_prompt_length=32",
        "data.max_response_length=32",
        f"actor_rollout_ref.model.path={folder}/student",
        f"distillation.teacher_models.teacher_model.model_path={folder}/teacher",
        "actor_rollout_ref.actor.ppo_mini_batch_size=4",
        "actor_rollout_ref.rollout.n=2",
        "trainer.total_training_steps=10",
        *overrides,
    ]


def config_of(folder: Path, *overrides: str, group: str = "two_stage") -> DictConfig:
    return compose(overrides_of(folder, *overrides, group=group))


def problem_of(config: DictConfig) -> str:
    with pytest.raises(ConfigError) as error:
        Plan.of(config)
    return str(error.value)


def test_a_good_configuration_passes(folder: Path) -> None:
    check(config_of(folder))


ON_POLICY = "paced.schedule=[{until:1.0,divergence:reverse_kl,responses:student}]"
NO_MODEL = "distillation.teacher_models.teacher_model.model_path=null"
TASK_REWARD = "distillation.distillation_loss.use_task_rewards=True"
ALONE = "GPUs: trainer + student vLLM 1\n"
POOL = "GPUs: trainer + student vLLM 1, teacher vLLM 1"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["trainer.v1.trainer_mode=synch"], ["trainer.v1.trainer_mode=synch", "would be ignored", "paced_sync"]),
        (["actor_rollout_ref.rollout.agent.agent_loop_manager_class=x.Y"], ["agent_loop_manager_class=x.Y"]),
        (
            ["actor_rollout_ref.rollout.calculate_log_probs=True", TASK_REWARD],
            ["calculate_log_probs", "responses: student"],
        ),
        (["algorithm.adv_estimator=gae", TASK_REWARD], ["adv_estimator=gae", "no critic"]),
        (["model_engine=megatron"], ["model_engine=megatron", "FSDP"]),
        (["actor_rollout_ref.rollout.temperature=0.6"], ["rollout.temperature=0.6", "Set it to 1.0"]),
        (["trainer.total_epochs=2"], ["total_training_steps=10", "end after 6 steps", "Raise trainer.total_epochs"]),
        (["distillation.n_gpus_per_node=0"], ["n_gpus_per_node=0", "teacher"]),
        (["paced.teacher.topk=101"], ["topk=101", "vocabulary of 100"]),
        (["paced.schedule.0.until=0.01"], ["paced.schedule[0].until=0.01", "step 0"]),
        (["paced.schedule.1.until=0.4"], ["paced.schedule[1].until=0.4", "overlap"]),
        (["paced.pass_rate.file=/no/such/table.parquet"], ["/no/such/table.parquet", "no such file"]),
        (["data.train_files=/no/such/data.parquet"], ["/no/such/data.parquet does not exist"]),
        (["actor_rollout_ref.model.path=/no/such/model"], ["actor_rollout_ref.model.path=/no/such/model"]),
        (["paced.targets.column=extra_info.response"], ["no field extra_info.response", "paced.targets.column"]),
        (["paced.teacher.solution_key=proof", "paced.teacher.context=solution"], ["no field extra_info.proof"]),
        (["distillation.teacher_models.teacher_model.inference.max_model_len=64"], ["max_model_len=64", "=65"]),
        (
            ["distillation.teacher_models.teacher_model.inference.max_model_len=70", "paced.teacher.context=solution"],
            ["max_model_len=70", "context=solution"],
        ),
        (["reward.reward_model.enable=True", "reward.reward_model.rollout.name=vllm"], ["enable_resource_pool"]),
        (
            [
                "actor_rollout_ref.actor.use_dynamic_bsz=False",
                "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8",
                "trainer.n_gpus_per_node=3",
            ],
            ["paced.schedule[0] trains 4 rows", "3 data-parallel rank(s) cannot share out"],
        ),
    ],
)
def test_a_configuration_that_cannot_run_says_so(folder: Path, overrides: list[str], words: list[str]) -> None:
    message = problem_of(config_of(folder, *overrides))
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([ON_POLICY, NO_MODEL, "paced.teacher.backend=reference"], ["is the student itself", "0 for ever"]),
        ([ON_POLICY, "paced.teacher.backend=student"], ["backend=student", "0 for ever", "context=solution"]),
        (["paced.teacher.backend=reference"], ["scores but does not write", "paced.targets.column"]),
        ([ON_POLICY, "paced.teacher.backend=reference", "paced.teacher.update=ema", "paced.teacher.ema_decay=0.9"],
         ["update=ema", "starts as the student"]),
        ([ON_POLICY, NO_MODEL, "paced.teacher.backend=reference", "paced.teacher.context=solution",
          "paced.teacher.update=ema", "paced.teacher.ema_decay=0.9",
          "actor_rollout_ref.ref.fsdp_config.model_dtype=bf16"], ["model_dtype=bf16", "Set it to fp32"]),
        ([ON_POLICY, "paced.teacher.backend=reference", "paced.teacher.topk=full",
          "actor_rollout_ref.ref.strategy=fsdp"], ["topk=full", "fsdp2"]),
        ([ON_POLICY, "paced.teacher.backend=student", "paced.teacher.context=solution",
          "actor_rollout_ref.rollout.max_model_len=70"], ["rollout.max_model_len=70", "context=solution"]),
        ([ON_POLICY, "paced.teacher.context={a:answer,b:none}"], ["context for each", "['None']"]),
        ([ON_POLICY, "paced.teacher.context={data_source:{openai/gsm8k:rollout},others:none}",
          "actor_rollout_ref.rollout.n=1"], ["rollout.n to 2 or more"]),
        ([ON_POLICY, NO_MODEL, "paced.teacher.backend=student",
          "paced.teacher.context={data_source:{openai/gsm8k:solution},others:none}"], ["0 for ever"]),
        ([ON_POLICY, "paced.teacher.context={data_source:{gsm8k:solution}}"], ["they have openai/gsm8k (12 rows)"]),
        ([ON_POLICY, "paced.teacher.context=rollout", "actor_rollout_ref.rollout.n=1"], ["rollout.n to 2 or more"]),
        (["paced.teacher.context=rollout"], ["shows a rollout", "responses: student"]),
        ([ON_POLICY, "paced.weight.source=group", "paced.sampler.power=1"], ["sampler.power=1", "Set power to 0"]),
        ([ON_POLICY, "paced.weight.source=group"], ["source=group", "rollout.n=2", "3 or more", "posterior"]),
        ([ON_POLICY, "paced.pass_rate.refresh=never", "paced.sampler.explore=0.1", "actor_rollout_ref.rollout.n=1"],
         ["rollout.n=1", "refresh=never", "estimate=posterior", "2 or more"]),
        ([ON_POLICY, "paced.route={context:answer}"], ["paced.route", "use_task_rewards=True"]),
        ([ON_POLICY, TASK_REWARD, "paced.route={context:answer}", "paced.sampler.power=1"], ["needs all prompts"]),
        ([ON_POLICY, TASK_REWARD, "paced.route={context:proof.jinja}"], ["paced.route", "no such file"]),
        (["paced.schedule.0.coef=0.5"], ["paced.schedule[0].coef", "use_task_rewards=True"]),
        (["algorithm.filter_groups.enable=True", "algorithm.filter_groups.metric=acc"], ["filter_groups", "student"]),
        (["algorithm.adv_estimator=paced"], ["adv_estimator=paced", "+paced=advantage"]),
        (["actor_rollout_ref.actor.strategy=megatron"], ["strategy=megatron", "fsdp or fsdp2"]),
        (["actor_rollout_ref.rollout.name=sglang"], ["rollout.name=sglang", "vLLM"]),
    ],
)  # fmt: skip
def test_teachers_and_task_rewards_that_cannot_run_say_so(folder: Path, overrides: list[str], words: list[str]) -> None:
    message = problem_of(config_of(folder, *overrides))
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("overrides", "lines"),
    [
        ([ON_POLICY, NO_MODEL, "paced.teacher.backend=reference", "paced.teacher.context=solution"],
         ["teacher: engine in the trainer's workers, context solution", ALONE]),
        ([ON_POLICY, NO_MODEL, "paced.teacher.backend=student", "paced.teacher.context=answer"],
         ["teacher: the student's own rollout servers, its current weights, context answer", ALONE]),
        ([ON_POLICY, NO_MODEL, "paced.teacher.backend=reference", TASK_REWARD],
         ["teacher: engine in the trainer's workers, context none", ALONE]),
        ([ON_POLICY, TASK_REWARD, "paced.route={context:answer}"],
         ["teacher: vLLM teacher pool, context none", "p ≤ 0 self-distillation under context answer", POOL]),
        ([ON_POLICY, "paced.teacher.context={data_source:{openai/gsm8k:solution},others:none}"],
         ["context openai/gsm8k: solution (by data_source; others: none)", POOL]),
        ([ON_POLICY, "paced.teacher.context=rollout", "paced.weight.source=group", "actor_rollout_ref.rollout.n=3"],
         ["teacher: vLLM teacher pool, context rollout", POOL]),
        (["paced.teacher.backend=reference", "paced.targets.column=extra_info.solution"],
         ["teacher: engine in the trainer's workers, context none", "responses from extra_info.solution", ALONE]),
    ],
)  # fmt: skip
def test_teachers_without_a_pool_and_routes_pass(folder: Path, overrides: list[str], lines: list[str]) -> None:
    plan = str(Plan.of(config_of(folder, *overrides)))
    for line in lines:
        assert line in plan


def test_no_teacher(folder: Path) -> None:
    config = config_of(folder)
    with open_dict(config):
        config.distillation.teacher_models.teacher_model.model_path = None
    assert "which model is the teacher" in problem_of(config)


def test_a_teacher_that_is_the_student_and_sees_the_same(folder: Path) -> None:
    teacher = f"distillation.teacher_models.teacher_model.model_path={folder}/student"
    assert "the divergence is 0 for ever" in problem_of(config_of(folder, teacher))
    check(config_of(folder, teacher, "paced.teacher.context=answer"))


def test_vocabularies_that_differ(folder: Path) -> None:
    teacher = f"distillation.teacher_models.teacher_model.model_path={folder}/stranger"
    assert "vocabulary differs from the student's" in problem_of(config_of(folder, teacher))


def test_no_signal_of_correctness(folder: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path / "bare.parquet", reward_model=None)
    message = problem_of(config_of(folder, f"data.train_files={data}"))
    assert "no field reward_model" in message
    assert "there is no pass rate" in message


def test_data_that_are_no_parquet(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "data.parquet").write_bytes(b"junk")
    assert "not a parquet file" in problem_of(config_of(folder, f"data.train_files={tmp_path}/data.parquet"))


def test_a_table_of_other_data(folder: Path, tmp_path: Path) -> None:
    PassRateTable(ROWS + 1).save(tmp_path / "table.parquet")
    file = f"paced.pass_rate.file={tmp_path}/table.parquet"
    message = problem_of(config_of(folder, file, "data.filter_overlong_prompts=False"))
    assert "table.parquet" in message
    assert str(ROWS) in message


def test_a_corrupt_table(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "table.parquet").write_bytes(b"PAR1junk")
    assert "table.parquet" in problem_of(config_of(folder, f"paced.pass_rate.file={tmp_path}/table.parquet"))


def test_another_verl(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata

    versions = importlib.metadata.version
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.8.0" if name == "verl" else versions(name))
    assert "verl 0.8.0 is installed" in problem_of(config_of(folder))


def test_the_plan_says_what_will_run(folder: Path) -> None:
    text = str(Plan.of(config_of(folder, "data.shuffle=False", "paced.weight.low=0.1")))
    for line in (
        "stage 1 (steps 1–5): forward_kl on teacher responses",
        "no rollouts, 4 rows and teacher scorings per step",
        "stage 2 (steps 6–10): reverse_kl on student responses",
        "2 rollout(s) per prompt, 8 rows and teacher scorings per step; 40 of each in the stage",
        "K=8 at temperature 1 before step 1, 6, 96 rollouts each time",
        "visits: 5 student steps × 4 / 12 prompts = 1.7 of each",
        "warning: 1.7 visits between estimates",
        "GPUs: trainer + student vLLM 1, teacher vLLM 1",
        f"models: student {folder}/student, teacher_model {folder}/teacher",
        "ignored: data.shuffle=False (the pass-rate sampler decides the order)",
        "ignored: paced.weight.low=0.1 (kernel: beta does not read it)",
    ):
        assert line in text


@pytest.mark.parametrize(
    ("overrides", "visits", "warns"),
    [
        (["paced.schedule.0.until=1"], "9 student steps × 4 / 12 prompts = 3.0", False),
        (["paced.schedule.0.until=2"], "8 student steps × 4 / 12 prompts = 2.7", True),
        (["paced.schedule.0.until=1", "paced.schedule.0.responses=student"], "10 student steps", False),
        (["paced.pass_rate.refresh=every", "paced.pass_rate.every_steps=2"], "5 student steps", False),
        (["paced.pass_rate.from_training=False"], "", False),
        (["paced.weight.kernel=uniform"], "", False),
        (["paced.schedule.1.responses=teacher"], "", False),
    ],
)
def test_the_plan_warns_where_pass_rates_rest_on_too_few_visits(
    folder: Path, overrides: list[str], visits: str, warns: bool
) -> None:
    text = str(Plan.of(config_of(folder, *overrides)))
    assert visits in text
    assert ("visits:" in text) == bool(visits)
    assert ("lags behind the student" in text) == warns


@pytest.mark.parametrize(
    ("overrides", "price", "cheaper"),
    [
        # 2 estimates of 12 prompts × 8 samples; stage 1 scores 5 × 4 rows, stage 2 samples and scores 5 × 8.
        ([], "232 rollouts, 192 of them (83%) for estimates; at most 60 teacher scorings", "refresh=start"),
        (["paced.pass_rate.refresh=start"], "136 rollouts, 96 of them (71%)", "samples=4 costs 50% of them"),
        (["paced.pass_rate.refresh=start", "paced.pass_rate.at_end=true"], "232 rollouts, 192 of", "at_end=false"),
        (["paced.pass_rate.refresh=start", "paced.pass_rate.samples=3"], "76 rollouts, 36 of them (47%)", ""),
        (["paced.pass_rate.refresh=start", "paced.pass_rate.samples=2", "paced.schedule.1.responses=teacher"],
         "24 rollouts, 24 of them (100%) for estimates; at most 40 teacher scorings", "paced.pass_rate.file=…"),
        # Of 12 prompts, 2 steps of 4 draw 8, or all 12 where some weigh 0.
        (["trainer.total_training_steps=2"], "200 rollouts, 192 of", "64 to 96 rollouts"),
        (["trainer.total_training_steps=2", "paced.pass_rate.refresh=draw"], "104 rollouts, 64 to 96 of them (92%)",
         "samples=4"),
        (["trainer.total_training_steps=2", "paced.pass_rate.refresh=draw", "paced.weight.estimate=posterior"],
         "72 rollouts, 64 of them (89%)", "samples=4"),
        (["trainer.total_training_steps=2", "paced.pass_rate.refresh=draw", "paced.sampler.power=1",
          "paced.pass_rate.ahead=1"], "72 rollouts, 64 of them (89%)", "samples=4"),
        (["paced.pass_rate.refresh=draw", "paced.pass_rate.max_age=2"], "360 rollouts, 96 to 320 of", "samples=4"),
    ],
)  # fmt: skip
def test_the_plan_says_what_estimates_cost_and_what_would_cost_less(
    folder: Path, overrides: list[str], price: str, cheaper: str
) -> None:
    text = str(Plan.of(config_of(folder, *overrides)))
    assert f"whole run: {price}" in text
    warnings = [line for line in text.splitlines() if "only measure pass rates" in line]
    assert [cheaper in line for line in warnings] == ([True] if cheaper else [])


@pytest.mark.parametrize("group", ["two_stage", "frontier", "forward_kl", "reverse_kl", "uniform", "hard_filter"])
def test_every_group_in_the_wheel_composes_and_passes(folder: Path, group: str) -> None:
    Plan.of(config_of(folder, group=group))


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=os.environ | environment, timeout=120
    )


def test_verls_launcher_stops_before_ray(folder: Path) -> None:
    """The real launcher, with a misspelt key: an exit code, a message, and no Ray."""
    result = run(
        *("-m", "verl.trainer.main_ppo", "+paced=two_stage", "+machine=cpu", "+paced.weight.alpah=2"),
        f"data.train_files={folder}/train.parquet",
        VERL_PLATFORM="cpu",
    )
    assert result.returncode != 0
    assert "paced.weight.alpah is not a key that anything reads. Did you mean 'alpha'?" in result.stderr
    assert "ray init" not in result.stdout


def test_a_plugin_that_verl_is_told_not_to_load_is_loud(folder: Path) -> None:
    arguments = ("-m", "verl.trainer.main_ppo", "+paced=two_stage", f"data.train_files={folder}/train.parquet")
    result = run(*arguments, VERL_PLATFORM="", VERL_USE_EXTERNAL_PLUGINS="none")
    assert result.returncode != 0
    assert "VERL_USE_EXTERNAL_PLUGINS=none keeps verl from loading paced-verl" in result.stderr
    assert "ray init" not in result.stdout


def test_a_plugin_that_cannot_be_imported_is_loud(tmp_path: Path) -> None:
    """Hydra would take +paced=two_stage for a new key, and verl would run without PACED."""
    (tmp_path / "wrapt.py").write_text("raise ImportError('wrapt is broken')")
    arguments = ("-m", "verl.trainer.main_ppo", "+paced=two_stage")
    result = run(*arguments, VERL_PLATFORM="", PYTHONPATH=str(tmp_path))
    assert result.returncode != 0
    assert "paced-verl is installed but does not load: ImportError: wrapt is broken" in result.stderr
