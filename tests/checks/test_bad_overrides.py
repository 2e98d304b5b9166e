"""Overrides that nobody means, through the launcher's own door: a sentence with the key, for ours and for verl's."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from paced_verl.checks.verl import BLOCKS
from paced_verl.config import ConfigError
from paced_verl.launch.hydra import describe
from tests.checks.test_checks import ROWS, config_of, write_data, write_model

USER = {"role": "user", "content": "problem"}
TEACHER = "distillation.teacher_models.teacher_model"
STUDENT = "actor_rollout_ref.model.path"
FILES: dict[str, dict[str, Any]] = {
    "train": {},
    "no_role": {"prompt": [[{"content": "problem"}]] * ROWS},
    "role_null": {"prompt": [[USER], [USER | {"role": None}], *[[USER]] * (ROWS - 2)]},
    "extra_text": {"extra_info": ['{"solution": "two"}'] * ROWS},
}
ROLLOUT, ACTOR = "actor_rollout_ref.rollout", "actor_rollout_ref.actor"
LATE = (
    (f"{ACTOR}.kl_loss_type", "foo", "low_var_kl"),
    (f"{ACTOR}.optim.lr_warmup_steps", "abc", "whole number"),
    (f"{ACTOR}.optim.lr_warmup_steps_ratio", "-1", "from 0 on"),
    (f"{ACTOR}.fsdp_config.model_dtype", "foo", "bf16"),
    (f"{ROLLOUT}.dtype", "foo", "bfloat16"),
    (f"{ROLLOUT}.load_format", "foo", "safetensors"),
    (f"{ROLLOUT}.prompt_length", "7", "data.max_prompt_length"),
    (f"{ROLLOUT}.response_length", "7", "data.max_response_length"),
    (f"{TEACHER}.inference.gpu_memory_utilization", "0", "above 0"),
    (f"{TEACHER}.inference.gpu_memory_utilization", "2", "up to 1"),
    ("trainer.save_freq", "abc", "whole number"),
    ("trainer.test_freq", "null", "whole number"),
    ("trainer.logger", "[foo]", "tensorboard"),
    ("trainer.logger", "3", "a list"),
    ("data.truncation", "foo", "middle"),
    (f"{ROLLOUT}.agent.agent_loop_config_path", "nowhere.yaml", "no such file"),
    (f"{ROLLOUT}.multi_turn.tool_config_path", "/nowhere.yaml", "no such file"),
)
"""What verl or vLLM looks up once Ray and the models are there."""
TEMPLATES = {"quotes_its_row.jinja": "{{ problem }}\n{{ {'problem 3': 'x'}[problem] }}"}


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[bytes]:
    """A good configuration, pickled (a live one takes half a second to copy), in the folder that its paths are of."""
    folder = tmp_path_factory.mktemp("overrides")
    for name, columns in FILES.items():
        write_data(folder / f"{name}.parquet", **{"data_source": ["openai/gsm8k"] * ROWS} | columns)
    for name in ("student", "teacher", "no_tokenizer"):
        write_model(folder / name, ["problem", "two", "and"])
    for file in (folder / "no_tokenizer").glob("tokenizer*"):
        file.unlink()
    for name, text in TEMPLATES.items():
        (folder / name).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield pickle.dumps(config_of(folder))


def overridden(composed: bytes, overrides: str) -> DictConfig:
    config: DictConfig = pickle.loads(composed)
    for override in OverridesParser.create().parse_overrides(overrides.split()):
        OmegaConf.update(config, override.key_or_group, override.value(), merge=False, force_add=True)
    return config


def refusal(composed: bytes, overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        describe(overridden(composed, overrides))
    return str(error.value)


def test_without_overrides_it_passes(composed: bytes) -> None:
    describe(overridden(composed, ""))


@pytest.mark.parametrize("key", [*BLOCKS, TEACHER])
@pytest.mark.parametrize("value", ["null", "3", "[]"])
def test_no_block_of_verls_is_replaced(composed: bytes, key: str, value: str) -> None:
    message = refusal(composed, f"{key}={value}")
    assert message.startswith(f"{key}={value}: expected")
    assert len(message.splitlines()) == 1, "one cause, one line"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        *((f"{STUDENT}={value}", [f"{STUDENT}={value}", "folder"]) for value in ("null", "3", "[]")),
        *((f"{TEACHER}.model_path={value}", [f"{TEACHER}.model_path={value}", "folder"]) for value in ("3", "[]")),
        (f"{STUDENT}=no_tokenizer", [f"{STUDENT}=no_tokenizer", "no tokenizer"]),
        (f"{TEACHER}.inference.max_model_len=64", ["verl would refuse this", "max_model_len=64"]),
        *((f"data.{key}={value}", [f"data.{key}={value}", "or -1"]) for key in ("train_max_samples", "val_max_samples")
          for value in ("0", "-2", "1.5", "abc", "null", "true")),
        ("trainer.resume_mode=resume_path trainer.resume_from_path=nowhere/global_step_3",
         ["trainer.resume_from_path=nowhere/global_step_3", "no such folder"]),
        ("distillation.teacher_models={}", ["distillation.teacher_models={}", "verl's block"]),
        *((f"data.prompt_key={value}", [f"data.prompt_key={value}", "column"]) for value in ("null", "3")),
        *((f"{key}={value}", [f"{key}={value}", expected]) for key, value, expected in LATE),
        ("data.train_files=no_role.parquet", ["no_role.parquet", "prompt", "role"]),
        ("data.train_files=role_null.parquet", ["1 of 12 rows", "role_null.parquet", "row 1", "no role"]),
        ("data.train_files=extra_text.parquet", ["extra_text.parquet", "extra_info is string"]),
    ],
)  # fmt: skip
def test_what_verl_would_stumble_over_is_a_sentence(composed: bytes, overrides: str, words: list[str]) -> None:
    message = refusal(composed, overrides)
    for word in words:
        assert word in message
    assert "Error in call to target" not in message, "that is Hydra's"


def test_errors_that_quote_their_row_are_one_line(composed: bytes) -> None:
    message = refusal(composed, "paced.teacher.context=quotes_its_row.jinja")
    assert f"{ROWS - 1} of {ROWS} rows of" in message
    assert "row 0" in message
    assert len(message.splitlines()) == 1
