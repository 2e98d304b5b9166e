"""verl's own example scripts with one more word: each runs, or is refused in a sentence that says what it cannot have.

verl_scripts.json has the arguments of a part of verl v0.9.0's ``examples/``, as
``python scripts/check_examples.py FOLDER --json FILE`` writes them.
"""

from __future__ import annotations

import functools
import json
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import check_examples
import pytest
import support
from bash_calls import Calls
from check_examples import WORDS, Example, Result, another, composed, engines, judge, launch, remark
from hydra._internal.config_repository import ConfigRepository

SCRIPTS: dict[str, list[str]] = json.loads((Path(__file__).parent / "verl_scripts.json").read_text())

RUN = [
    "ascend_extras/grpo_trainer/run_qwen3_next_80b_fsdp.sh",
    "cispo_trainer/run_qwen3_8b_fsdp.sh",
    "gdpo_trainer/run_qwen3_8b_fsdp.sh",
    "grpo_trainer/run_qwen2_5_vl_7b_fsdp.sh",
    "grpo_trainer/run_qwen3_8b_fsdp.sh",
    "prefix_grouper/run_qwen3_8b_fsdp.sh",
    "reinforce_plus_plus_trainer/run_qwen3_8b_fsdp.sh",
    "remax_trainer/run_qwen3_8b_fsdp.sh",
]
"""FSDP and vLLM: with every word."""

NO_ADVANTAGE = {
    "on_policy_distillation_trainer/run_qwen3_5_4b_fsdp.sh": "rollout.n=1",
    "on_policy_distillation_trainer/run_qwen3_8b_fsdp.sh": "rollout.n=1",
    "on_policy_distillation_trainer/run_qwen3_8b_mopd_fsdp.sh": "rollout.n=1",
    "on_policy_distillation_trainer/run_qwen3_vl_8b_fsdp.sh": "rollout.n=1",
    "ppo_trainer/run_qwen3_8b_fsdp.sh": "rollout.n=1",
    "rollout_correction/run_qwen2_5_7b_fsdp.sh": "rollout.n=1",
    "tuning/lora/run_qwen2_5_vl_7b_fsdp.sh": "LoRA",
    "tuning/lora/run_qwen3_8b_fsdp.sh": "LoRA",
}
"""FSDP and vLLM, but the advantage has no group to compare with, or no model of its own in verl's reference worker."""

REFUSED = {
    "gpg_trainer/run_qwen3_8b_megatron.sh": "megatron",
    "grpo_trainer/run_mistral_nemo_12b_skyworkrm_fsdp.sh": "reward.reward_model.enable_resource_pool",
    "grpo_trainer/run_moonlight_16b_a3b_megatron.sh": "megatron",
    "grpo_trainer/run_qwen2-7b_math_megatron_fsdp.sh": "megatron",
    "grpo_trainer/run_qwen3_30b_veomni.sh": "veomni",
    "grpo_trainer/run_qwen3_5_35b_a3b_veomni.sh": "veomni",
    "grpo_trainer/run_qwen3_8b_megatron.sh": "megatron",
    "grpo_trainer/run_qwen3_vl_30b_moe_veomni.sh": "veomni",
    "grpo_trainer/run_qwen3_vl_8b_megatron.sh": "megatron",
    "on_policy_distillation_trainer/run_qwen3_0.6b_opd_veomni.sh": "veomni",
    "on_policy_distillation_trainer/run_qwen3_8b_megatron.sh": "megatron",
    "on_policy_distillation_trainer/run_qwen3_8b_mopd_veomni.sh": "veomni",
    "ppo_trainer/run_qwen3_8b_megatron.sh": "megatron",
    "profile/run_qwen2_5_vl_7b_torch_memory.sh": "sglang",
    "sapo_trainer/run_qwen3_8b_fsdp.sh": "tau_pos",  # verl 0.9.1 itself no longer has it
}
"""What the first line of the refusal must name."""

GRPO = "grpo_trainer/run_qwen3_8b_fsdp.sh"
OPD = "on_policy_distillation_trainer/run_qwen3_8b_fsdp.sh"
MORE = {
    "colocate_async": ["trainer.v1.trainer_mode=colocate_async"],
    "separate_async": [
        "trainer.v1.trainer_mode=separate_async",
        "trainer.v1.separate_async.parameter_sync_step=4",
        "actor_rollout_ref.rollout.nnodes=1",
        "actor_rollout_ref.rollout.n_gpus_per_node=8",
        "actor_rollout_ref.rollout.checkpoint_engine.backend=nccl",
    ],
    "multi_turn": [
        "actor_rollout_ref.rollout.multi_turn.enable=True",
        "actor_rollout_ref.rollout.agent.default_agent_loop=tool_agent",
    ],
}
"""Asynchronous and multi-turn commands: none of the scripts has these keys, but a script's user adds them."""


@pytest.fixture(autouse=True)
def _on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VERL_PLATFORM", raising=False)


@pytest.fixture(scope="module", autouse=True)
def _files_read_once() -> Iterator[None]:
    """Hydra reads verl's 30 files anew for every composition, which takes as long as all the rest."""
    load, read = ConfigRepository.load_config, {}

    def kept(self: ConfigRepository, config_path: str) -> object:
        if config_path not in read:
            read[config_path] = pickle.dumps(load(self, config_path))
        return pickle.loads(read[config_path])  # a copy: Hydra changes what it gets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConfigRepository, "load_config", kept)
        yield


@functools.cache
def result(name: str, word: str, *more: str) -> Result:
    return judge([*SCRIPTS[name], *more], word)


def test_every_script_has_one_expectation() -> None:
    assert len(SCRIPTS) >= 30
    assert sorted(SCRIPTS) == sorted([*RUN, *NO_ADVANTAGE, *REFUSED])


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("name", RUN)
def test_with_fsdp_and_vllm_the_word_is_enough(name: str, word: str) -> None:
    got = result(name, word)
    assert got.verdict == "runs", got


@pytest.mark.parametrize("word", ["two_stage", "self_distillation"])
@pytest.mark.parametrize("name", NO_ADVANTAGE)
def test_as_a_loss_without_a_group_or_with_lora_too(name: str, word: str) -> None:
    got = result(name, word)
    assert got.verdict == "runs", got


@pytest.mark.parametrize("named", ["rollout.n=1", "LoRA"])
def test_the_advantage_needs_a_group_and_a_model_of_its_own(named: str) -> None:
    got = result(next(name for name, key in NO_ADVANTAGE.items() if key == named), "advantage")
    assert got.verdict == "refused", got
    assert named in got.said.splitlines()[0]


@pytest.mark.parametrize(("name", "named"), REFUSED.items())
def test_what_cannot_run_is_refused_by_name(name: str, named: str) -> None:
    got = result(name, "two_stage")
    assert got.verdict == "refused", got
    assert named in got.said.splitlines()[0]


@pytest.mark.parametrize("named", ["megatron", "veomni", "sglang"])
def test_the_advantage_refuses_other_engines_too(named: str) -> None:
    got = result(next(name for name, key in REFUSED.items() if key == named), "advantage")
    assert got.verdict == "refused", got
    assert named in got.said.splitlines()[0]


@pytest.mark.parametrize("more", MORE.values(), ids=MORE)
def test_asynchronous_and_multi_turn_commands_run(more: list[str]) -> None:
    got = result(GRPO, "two_stage", *more)
    assert got.verdict == "runs", got


def test_groups_that_dapo_filters_need_rollouts() -> None:
    filtered = "algorithm.filter_groups.enable=True"
    assert result(GRPO, "self_distillation", filtered).verdict == "runs"
    refused = result(GRPO, "two_stage", filtered)
    assert refused.verdict == "refused"
    assert "filter_groups" in refused.said


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        (OPD, ["loss_mode", "use_policy_gradient", "log_prob_min_clamp"]),
        (GRPO, ["use_kl_loss"]),
        ("grpo_trainer/run_qwen2_5_vl_7b_fsdp.sh", ["use_fused_kernels"]),
        ("reinforce_plus_plus_trainer/run_qwen3_8b_fsdp.sh", ["use_kl_in_reward", "adv_estimator"]),
        ("rollout_correction/run_qwen2_5_7b_fsdp.sh", ["calculate_log_probs", "rollout_correction"]),
    ],
)
def test_settings_of_the_script_that_do_not_run_are_said(name: str, keys: list[str]) -> None:
    plan = result(name, "two_stage").said
    for key in keys:
        assert re.search(rf"^ *(replaced|ignored): [\w.]+\.{key}[=:]", plan, re.M), plan


def test_strictly_they_are_refused() -> None:
    got = result(OPD, "two_stage", "paced.strict=true")
    assert got.verdict == "refused"
    assert "distillation.distillation_loss.loss_mode" in got.said


def test_what_nobody_wrote_is_not_said_to_be_replaced() -> None:
    assert "null →" not in result(GRPO, "two_stage").said


def test_engines_and_images() -> None:
    name = "profile/run_qwen2_5_vl_7b_torch_memory.sh"
    assert engines(composed(SCRIPTS[name])) == "fsdp, sglang"
    assert remark(name, []).startswith("images")
    assert remark("a.sh", ["data.image_key=images"]).startswith("images")
    assert remark("run_qwen3_8b_fsdp.sh", SCRIPTS[GRPO]) == ""


def test_hydras_own_arguments_choose_the_file() -> None:
    chosen = ["--config-path=config", "--config-name", "ppo_megatron_trainer.yaml"]
    assert engines(composed([*chosen, "actor_rollout_ref.rollout.name=vllm"])) == "megatron, vllm"


def test_launches_are_told_from_other_entry_points() -> None:
    launches = Calls([["git", "clone"], ["torchrun", "-m", "verl.trainer.main_ppo", "a=1"], ["date"]])
    assert launch(launches) == ["a=1"]
    other = Calls([["torchrun", "-m", "verl.trainer.sft_trainer", "a=1"]])
    assert launch(other) is None
    assert another(other) == "have another entry point: verl.trainer.sft_trainer"
    assert another(Calls([], "ended with 1")) == "launch nothing as they are: ended with 1"


def test_a_traceback_is_not_a_refusal() -> None:
    got = judge(["no.such.key=1"], "two_stage")
    assert got.verdict == "TRACEBACK"
    assert "no.such.key" in got.said


def test_a_result_in_a_clause() -> None:
    assert Result("refused", "a.b=c: why. What to do.\nd=e: more.").clause == "refused: a.b=c (+1)"
    assert Result("refused", "verl would refuse this: a.b: bad value.").clause == "refused by verl: a.b: bad value"
    assert Result("runs", "plan\n  replaced: a: 1 → 2 (why)\n  ignored: b=1 (why)").clause.startswith("runs (1 repl")


def test_both_scripts_keep_each_others_part_of_the_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = tmp_path / "support.md"
    document.write_text("# Tests\n\n| a |\n")
    monkeypatch.setattr(check_examples, "SUPPORT", document)
    examples = {"run.sh": Example("fsdp, vllm", {word: Result("refused", "a|b=c: why") for word in WORDS}, "")}
    for _ in range(2):
        check_examples.write(check_examples.as_markdown(examples, {"other.sh": "ended with 1: why"}))
    text = document.read_text()
    assert text.startswith("# Tests\n\n| a |\n\n<!--")
    assert text.count("| `run.sh` | fsdp, vllm | refused: a\\|b=c |") == 1
    assert "- Not in the table: 1 ended with 1." in text
    assert support.OTHERS.findall(text) == [text.removeprefix("# Tests\n\n| a |\n")]
