"""Promise 7 for files: data, models, reward functions and tables as strangers have them get a sentence, or pass."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from paced_verl.checks.data import number_of_prompts
from paced_verl.checks.files import file_problems
from paced_verl.checks.reward import reward_function
from paced_verl.checks.scan import Rows
from paced_verl.config import PacedConfig
from paced_verl.fingerprint import fingerprint, spread
from paced_verl.pacing.pass_rates import PassRateTable
from tests.checks.test_checks import ROWS, config_of, write_data, write_model

SOLUTION = "paced.teacher.context=solution"
ANSWER = "paced.teacher.context=answer"
ON_POLICY = "paced.schedule=[{until:1.0,divergence:reverse_kl,responses:student}]"
NO_MODEL = "distillation.teacher_models.teacher_model.model_path=null"
REFERENCE = "paced.teacher.backend=reference"
TEACHER = "distillation.teacher_models.teacher_model.model_path"
STUDENT = "actor_rollout_ref.model.path"
REWARD = "reward.custom_reward_function"


def messages(text: str | None) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def some(value: object, other: object, *where: int) -> list[object]:
    """``other`` in the rows ``where``, ``value`` in the rest."""
    return [other if i in where else value for i in range(ROWS)]


def solutions(*values: object) -> list[dict[str, object]]:
    return [{"index": i, "solution": value} for i, value in enumerate(values)]


PROMPTS = [messages(f"problem {i}") for i in range(ROWS)]
TRUTH: dict[str, object] = {"style": "rule", "ground_truth": "4"}
NO_TRUTH: dict[str, object] = {"style": "rule", "ground_truth": None}
TEXT = "two and two"
PIXEL = {"bytes": b"\x89PNG", "path": None}

DATA: dict[str, dict[str, object]] = {
    "good": {},
    "no_rm": {"reward_model": None},
    "no_gt_field": {"reward_model": [{"style": "rule"}] * ROWS},
    "no_source": {"data_source": None},
    "no_prompt": {"prompt": None},
    "no_extra": {"extra_info": None},
    "gt_none_all": {"reward_model": [NO_TRUTH] * ROWS},
    "gt_none_some": {"reward_model": some(TRUTH, NO_TRUTH, 3, 5)},
    "gt_blank_some": {"reward_model": some(TRUTH, {"style": "rule", "ground_truth": " "}, 7)},
    "rm_none_some": {"reward_model": some(TRUTH, None, 2)},
    "rm_text": {"reward_model": ["4"] * ROWS},
    "source_none_some": {"data_source": some("openai/gsm8k", None, 1)},
    "prompt_str": {"prompt": [f"problem {i}" for i in range(ROWS)]},
    "prompt_texts": {"prompt": [[f"problem {i}"] for i in range(ROWS)]},
    "prompt_empty_some": {"prompt": [*PROMPTS[:-2], [], []]},
    "prompt_none_some": {"prompt": [None, *PROMPTS[1:]]},
    "prompt_none_all": {"prompt": pa.nulls(ROWS)},
    "prompt_blank": {"prompt": [*PROMPTS[:4], messages(" "), *PROMPTS[5:]]},
    "prompt_content_none": {"prompt": [*PROMPTS[:4], messages(None), *PROMPTS[5:]]},
    "sol_none_some": {"extra_info": solutions(*some(TEXT, None, 5, 6))},
    "sol_none_all": {"extra_info": solutions(*[None] * ROWS)},
    "sol_blank_all": {"extra_info": solutions(*[""] * ROWS)},
    "sol_blank_some": {"extra_info": solutions(*some(TEXT, "\n ", 11))},
    "sol_dict": {"extra_info": solutions(*[{"steps": "two"}] * ROWS)},
    "sol_int": {"extra_info": solutions(*range(ROWS))},
    "extra_none_some": {"extra_info": some({"index": 0, "solution": TEXT}, None, 9)},
    "proof": {"extra_info": [{"proof": TEXT}] * ROWS},
    "response_some": {"response": some(TEXT, None, 0)},
    "response_blank": {"response": [" "] * ROWS},
    "response_int": {"response": list(range(ROWS))},
    "images": {"images": [[PIXEL]] * ROWS},
    "images_some": {"images": [*[None] * (ROWS - 1), [PIXEL]]},
    "images_none": {"images": pa.nulls(ROWS, pa.list_(pa.string()))},
    "videos": {"videos": [["clip.mp4"]] * ROWS},
    "extra_columns": {"difficulty": [0.5] * ROWS, "tags": [["a"]] * ROWS},
    "unknown_source": {"data_source": some("openai/gsm8k", "my_problems", 8)},
    "other_types": {"data_source": list(range(ROWS))},
    "question": {"prompt": None, "question": PROMPTS},
    "empty": {
        "data_source": pa.array([], pa.string()),
        "prompt": pa.array([], pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        "reward_model": pa.array([], pa.struct([("ground_truth", pa.string())])),
        "extra_info": pa.array([], pa.struct([("index", pa.int64())])),
    },
}

REWARDS = {
    "good": "def compute_score(data_source, solution_str, ground_truth, extra_info=None):\n    return 0.0",
    "dict": "def compute_score(**row):\n    return {'score': row['extra_info']['index'] * 0.0, 'acc': False}",
    "async": "async def compute_score(**row):\n    return 1",
    "kwargs": "def compute_score(scale, **row):\n    return scale",
    "raises": "def compute_score(**row):\n    return {}['key']",
    "async_raises": "async def compute_score(**row):\n    raise ValueError('asked in vain')",
    "signature": "def compute_score(answer, truth):\n    return 0.0",
    "none": "def compute_score(**row):\n    pass",
    "text": "def compute_score(**row):\n    return '0.5'",
    "nan": "def compute_score(**row):\n    return float('nan')",
    "pair": "def compute_score(**row):\n    return 0.5, 'why'",
    "no_score": "def compute_score(**row):\n    return {'reward': 1}",
    "bad_acc": "def compute_score(**row):\n    return {'score': 1, 'acc': 'yes'}",
    "constant": "compute_score = 0.5",
    "syntax": "def compute_score(:",
    "imports": "import no_such_package_of_mine",
    "exits": "raise SystemExit(2)",
    "network": "def compute_score(**row):\n    raise ConnectionRefusedError('no judge')",
}


def as_json(source: Path, target: Path, lines: bool) -> None:
    rows = pq.read_table(source).to_pylist()
    target.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows))


def write_table(path: Path, successes: object, samples: object, size: int = ROWS, mark: str = "") -> None:
    table = PassRateTable(size, fingerprint=mark)
    table.successes[:], table.samples[:] = successes, samples
    table.save(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad_data")
    for name, columns in DATA.items():
        write_data(folder / f"{name}.parquet", **columns)
    write_data(folder / "train.parquet")
    as_json(folder / "good.parquet", folder / "good.jsonl", lines=True)
    as_json(folder / "good.parquet", folder / "good.json", lines=False)
    as_json(folder / "sol_none_some.parquet", folder / "sol_none_some.jsonl", lines=True)
    for name in ("train.csv", "text.parquet", "text.jsonl"):
        (folder / name).write_text("prompt,answer\nwhat,4\n")
    (folder / "empty.jsonl").write_text("")
    (folder / "folder.parquet").mkdir()
    for name, text in REWARDS.items():
        (folder / f"{name}.py").write_text(text)
    _write_models(folder)
    _write_tables(folder)
    (folder / "crash.jinja").write_text("{{ problem }} {{ extra_info.hint }}")
    return folder


def _write_models(folder: Path) -> None:
    for name in ("student", "teacher", "noconfig", "badtok", "badconfig", "unknown", "short"):
        write_model(folder / name, ["problem", "two", "and"], positions=40 if name == "short" else 256)
    (folder / "noconfig" / "config.json").unlink()
    (folder / "badtok" / "tokenizer.json").write_text("{oops")
    (folder / "badconfig" / "config.json").write_text("{oops")
    (folder / "unknown" / "config.json").write_text('{"model_type": "nobody_has_this"}')
    (folder / "emptydir").mkdir()
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    (folder / "weights.safetensors").write_bytes(b"")


def _write_tables(folder: Path) -> None:
    half = np.tile([0.0, 2.0, 8.0], ROWS // 3)
    mine = fingerprint(PROMPTS[place] for place in spread(range(ROWS)))
    write_table(folder / "pr_good.parquet", half, 8, mark=mine)
    write_table(folder / "pr_unseen.parquet", 0, 0)
    write_table(folder / "pr_zero.parquet", 0, 8)
    write_table(folder / "pr_one.parquet", 8, 8)
    write_table(folder / "pr_larger.parquet", 4, 8, size=2 * ROWS)
    write_table(folder / "pr_stranger.parquet", half, 8, mark="0123456789abcdef")
    columns = {"prompt": pa.array([], pa.int32()), "successes": pa.array([], pa.float32())}
    pq.write_table(pa.table(columns | {"samples": pa.array([], pa.float32())}), folder / "pr_emptyt.parquet")
    pq.write_table(pa.table({"prompt": [0], "rate": [0.5]}), folder / "pr_columns.parquet")


@cache
def _base(folder: Path) -> DictConfig:
    """Composed once: a second a time is too much for so many cases."""
    return config_of(folder)


def problems_of(folder: Path, *overrides: str, change: Callable[[DictConfig], None] | None = None) -> list[str]:
    config = copy.deepcopy(_base(folder))
    for override in OverridesParser.create().parse_overrides([each.replace("@", f"{folder}/") for each in overrides]):
        OmegaConf.update(config, override.key_or_group, override.value(), force_add=True)
    if change is not None:
        change(config)
    block = OmegaConf.to_container(config.paced, resolve=True)
    return file_problems(config, PacedConfig.parse(block))


def data(name: str) -> str:
    return f"data.train_files=@{name}" if "." in name else f"data.train_files=@{name}.parquet"


BAD = [
    # The files
    ("data.train_files=null", ["data.train_files=None", "expected the path of a file"]),
    ("data.train_files=3", ["data.train_files=3", "expected the path of a file"]),
    ("data.train_files=[]", ["data.train_files=[]", "expected the path"]),
    ("data.train_files=/no/such.parquet", ["data.train_files: /no/such.parquet does not exist"]),
    ("data.train_files='~/no_such.parquet'", ["does not exist", "does not expand ~", "$HOME"]),
    ("data.train_files=@folder.parquet", ["folder.parquet is a folder", "Name the files in it"]),
    (data("train.csv"), ["train.csv has another suffix", ".jsonl"]),
    (data("text.parquet"), ["text.parquet is not a parquet file"]),
    (data("text.jsonl"), ["text.jsonl is not a file of JSON objects"]),
    (data("empty"), ["empty.parquet has no rows"]),
    (data("empty.jsonl"), ["empty.jsonl has no rows"]),
    ("data.train_files=[@good.parquet,@other_types.parquet]", ["cannot be joined into one table", "data_source"]),
    ("data.custom_cls.path=@good.py data.custom_cls.name=Rows", ["data.custom_cls.path", "good.py", "Rows"]),
    ("data.custom_cls.path=/no/such.py data.custom_cls.name=Rows", ["data.custom_cls.path=/no/such.py"]),
    ("data.val_files=null", ["data.val_files=None", "expected the path of a file"]),
    ("data.val_files=@text.parquet", ["data.val_files", "not a parquet file"]),
    ("data.val_files=@no_prompt.parquet", ["no_prompt.parquet has no field prompt", "data.prompt_key"]),
    ("data.val_files=@gt_none_some.parquet", ["2 of 12 rows of", "gt_none_some.parquet have no"]),
    ("data.val_files=@unknown_source.parquet", ["data_source='my_problems'"]),
    # Their rows
    (data("no_rm"), ["no field reward_model.ground_truth", "no pass rate", "Its columns: data_source, prompt"]),
    (data("no_gt_field"), ["no field reward_model.ground_truth"]),
    (data("rm_text"), ["no field reward_model.ground_truth"]),
    (data("no_source"), ["no field data_source", "no pass rate"]),
    (data("no_prompt"), ["no field prompt (data.prompt_key)"]),
    (data("gt_none_all"), ["12 of 12 rows of", "have no reward_model.ground_truth", "the first is row 0"]),
    (data("gt_none_some"), ["2 of 12 rows of", "have no reward_model.ground_truth", "the first is row 3"]),
    (f"{data('gt_blank_some')} {ANSWER}", ["1 of 12 rows", "the first is row 7", "context=answer"]),
    (data("rm_none_some"), ["1 of 12 rows of", "reward_model.ground_truth", "the first is row 2"]),
    (data("source_none_some"), ["1 of 12 rows", "have no data_source", "the first is row 1"]),
    (data("prompt_str"), ["its column prompt (data.prompt_key) is string", "chat messages", "prepare_jsonl.py"]),
    (data("prompt_texts"), ["its column prompt", "chat messages"]),
    (data("prompt_empty_some"), ["2 of 12 rows", "have no prompt in column prompt", "the first is row 10"]),
    (data("prompt_none_some"), ["1 of 12 rows", "have no prompt", "the first is row 0"]),
    (data("prompt_none_all"), ["12 of 12 rows", "have no prompt"]),
    (data("prompt_blank"), ["1 of 12 rows", "have no prompt", "the first is row 4"]),
    (data("prompt_content_none"), ["1 of 12 rows", "have no prompt", "the first is row 4"]),
    (data("question"), ["no field prompt (data.prompt_key)", "question"]),
    (f"{data('no_extra')} {SOLUTION}", ["no field extra_info.solution", "context=answer", "--solutions"]),
    (f"{data('proof')} {SOLUTION}", ["no field extra_info.solution", "paced.teacher.solution_key"]),
    (f"{data('sol_none_some')} {SOLUTION}", ["2 of 12 rows of", "extra_info.solution", "the first is row 5"]),
    (f"{data('sol_none_some.jsonl')} {SOLUTION}", ["2 of 12 rows of", "extra_info.solution", "the first is row 5"]),
    (f"data.train_files=[@good.parquet,@sol_none_some.parquet] {SOLUTION}", ["2 of 12 rows of", "sol_none_some"]),
    (f"{data('sol_none_all')} {SOLUTION}", ["12 of 12 rows", "context=answer", "prepare_jsonl.py"]),
    (f"{data('sol_blank_all')} {SOLUTION}", ["12 of 12 rows", "null or blank", "the first is row 0"]),
    (f"{data('sol_blank_some')} {SOLUTION}", ["1 of 12 rows", "the first is row 11"]),
    (f"{data('sol_dict')} {SOLUTION}", ["extra_info.solution is struct", "not text"]),
    (f"{data('sol_int')} {SOLUTION}", ["extra_info.solution is int64, not text"]),
    (f"{data('extra_none_some')} {SOLUTION}", ["1 of 12 rows", "the first is row 9"]),
    (
        f"{data('sol_none_all')} {ON_POLICY} distillation.distillation_loss.use_task_rewards=True "
        "paced.route={context:solution}",
        ["12 of 12 rows", "paced.route.context=solution shows it"],
    ),
    (f"{data('good')} paced.teacher.context=@crash.jinja", ["12 of 12 rows", "crash.jinja", "row 0", "hint"]),
    (f"{data('response_int')} paced.targets.column=response", ["its field response is int64, not text"]),
    (f"{data('response_blank')} paced.targets.column=response", ["12 of 12 rows", "have no response"]),
    (f"{data('response_some')} paced.targets.column=response {REFERENCE}", ["1 of 12 rows", "have no response"]),
    (f"{data('good')} paced.targets.column=response", ["no field response", "paced.targets.column"]),
    # Media
    (f"{data('images')} {SOLUTION}", ["has images (column images", "context=solution", "not be shown"]),
    (data("images"), ["has images", "paced.schedule[0].responses=teacher"]),
    (f"{data('images_some')} {ON_POLICY} {REFERENCE}", ["has images", "backend=reference"]),
    (f"{data('videos')} {ON_POLICY} {ANSWER}", ["has videos", "context=answer"]),
    # Models
    (f"{STUDENT}=null", [f"{STUDENT}=None", "expected a model's folder"]),
    (f"{STUDENT}=@emptydir", [f"{STUDENT}=", "emptydir has no config.json"]),
    (f"{STUDENT}=@student/", ["ends in a slash"]),
    (f"{STUDENT}='~/no_such_model'", ["does not exist", "does not expand ~"]),
    (f"{STUDENT}=./no_such_model", ["./no_such_model does not exist", "relative path is looked for in"]),
    (f"{STUDENT}=a/relative/path", ["a/relative/path does not exist"]),
    (f"{STUDENT}=@weights.safetensors", ["is a file: expected a model's folder"]),
    (f"{TEACHER}=/no/such/model", [f"{TEACHER}=/no/such/model does not exist"]),
    (f"{TEACHER}=@noconfig", [f"{TEACHER}=", "noconfig has no config.json"]),
    (f"{TEACHER}=@emptydir", ["emptydir has no config.json"]),
    (f"{TEACHER}=@badtok", [f"{TEACHER}=", "badtok cannot be loaded"]),
    (f"{TEACHER}=@badconfig", [f"{TEACHER}=", "badconfig cannot be loaded"]),
    (f"{STUDENT}=@unknown", ["unknown cannot be loaded", "nobody_has_this"]),
    (f"{TEACHER}=@adapter {ON_POLICY} {REFERENCE}", ["is a LoRA adapter", "merge"]),
    (
        f"{NO_MODEL} {ON_POLICY} {REFERENCE} {SOLUTION} +actor_rollout_ref.model.lora_adapter_path=@adapter",
        ["lora_adapter_path", "without this adapter"],
    ),
    ("distillation.teacher_models.teacher_model.inference.max_model_len=0", ["max_model_len=0 is too short"]),
    ("actor_rollout_ref.rollout.max_model_len=50", ["rollout.max_model_len=50 is too short", "64 or more"]),
    (f"{STUDENT}=@short", ["rollout.max_model_len=40 is too short", "64 or more"]),
    # Reward functions
    (
        data("unknown_source"),
        ["does not know these data", "data_source='my_problems'", "pkg://paced_verl.tasks.reward"],
    ),
    (f"{REWARD}.path=/no/such.py", [f"{REWARD}.path=/no/such.py cannot be imported", "not found"]),
    (f"{REWARD}.path=pkg://no.such.module", ["cannot be imported", "No module named 'no'"]),
    (f"{REWARD}.path=@imports.py", ["cannot be imported", "no_such_package_of_mine", "imports.py, line 1"]),
    (f"{REWARD}.path=@syntax.py", ["cannot be imported", "SyntaxError"]),
    (f"{REWARD}.path=@exits.py", ["cannot be imported", "SystemExit"]),
    (f"{REWARD}.path=@good.py {REWARD}.name=comput_score", ["comput_score", "Did you mean 'compute_score'?"]),
    (f"{REWARD}.path=@good.py {REWARD}.name=null", [f"{REWARD}.name=None", "compute_score"]),
    ("custom_reward_function.path=@good.py custom_reward_function.name=compute_scor", ["Did you mean"]),
    ("custom_reward_function.path=@good.py", ["custom_reward_function.name=None", "verl's default is compute_score"]),
    (f"{REWARD}.path=@constant.py", ["that is float, not a function"]),
    (f"{REWARD}.path=@raises.py", ["raises KeyError: 'key'", "raises.py, line 2", "I do not know.", "'4'"]),
    (f"{REWARD}.path=@async_raises.py", ["raises ValueError: asked in vain"]),
    (f"{REWARD}.path=@signature.py", ["raises TypeError", "data_source"]),
    (f"{REWARD}.path=@kwargs.py", ["raises TypeError", "scale"]),
    (f"{REWARD}.path=@none.py", ["returns None", "expected a finite number"]),
    (f"{REWARD}.path=@text.py", ["returns '0.5'"]),
    (f"{REWARD}.path=@nan.py", ["returns nan"]),
    (f"{REWARD}.path=@pair.py", ["returns (0.5, 'why')"]),
    (f"{REWARD}.path=@no_score.py", ["returns a dict without score"]),
    (f"{REWARD}.path=@bad_acc.py", ["'acc': 'yes'", "finite numbers"]),
    ("reward.reward_manager.name=prime", ["reward.reward_manager.name=prime", "no such reward manager"]),
    # Tables
    ("paced.pass_rate.file=/no/table.parquet", ["paced.pass_rate.file=/no/table.parquet", "no such file"]),
    ("paced.pass_rate.file=@pr_emptyt.parquet", ["no prompt in it has a sample"]),
    ("paced.pass_rate.file=@pr_columns.parquet", ["pr_columns.parquet", "successes"]),
    ("paced.pass_rate.file=@text.parquet", ["text.parquet", "cannot be read"]),
    ("paced.pass_rate.file=@pr_unseen.parquet", ["no prompt in it has a sample", "pass rates are then estimated"]),
    ("paced.pass_rate.file=@pr_larger.parquet", ["expected 12 prompts, found 24"]),
    (
        "paced.pass_rate.file=@pr_larger.parquet data.filter_overlong_prompts=True",
        ["it has 24 prompts, the training data 12"],
    ),
    ("paced.pass_rate.file=@pr_stranger.parquet", ["other prompts", "another order"]),
    ("paced.pass_rate.file=@pr_zero.parquet", ["every prompt has weight 0", "paced.pass_rate.file"]),
    ("paced.pass_rate.file=@pr_one.parquet paced.pass_rate.refresh=start", ["every prompt has weight 0"]),
    ("paced.pass_rate.file=@pr_zero.parquet paced.weight.fit=moments", ["paced.pass_rate.file", "fit_exponents"]),
]


@pytest.mark.parametrize(("overrides", "words"), BAD, ids=[overrides[:70] for overrides, _ in BAD])
def test_a_file_that_cannot_be_used_gets_a_sentence(folder: Path, overrides: str, words: list[str]) -> None:
    message = "\n".join(problems_of(folder, *overrides.split(" ")))
    for word in words:
        assert word in message


GOOD = [
    data("good.jsonl"),
    data("good.json"),
    data("extra_columns"),
    f"data.train_files=[@good.parquet,@good.jsonl] {SOLUTION}",
    f"{data('question')} data.prompt_key=question data.val_files=@question.parquet",
    f"{data('proof')} {SOLUTION} paced.teacher.solution_key=proof",
    f"{data('no_extra')} {ANSWER}",
    f"{data('sol_none_all')} {ANSWER}",
    data("sol_none_all"),
    f"{data('response_some')} paced.targets.column=response",
    f"{data('images')} {ON_POLICY}",
    f"{data('images_none')} {SOLUTION}",
    f"{data('no_rm')} {ON_POLICY} data.val_files=@no_rm.parquet reward.reward_model.enable=True",
    f"{data('no_rm')} data.custom_cls.path=pkg://verl.utils.dataset.rl_dataset data.custom_cls.name=RLHFDataset",
    f"{data('unknown_source')} {REWARD}.path=@good.py",
    f"{REWARD}.path=@dict.py",
    f"{REWARD}.path=@async.py",
    f"{REWARD}.path=@kwargs.py +{REWARD}.reward_kwargs.scale=0.5",
    f"{REWARD}.path=@network.py",
    f"custom_reward_function.path=@good.py custom_reward_function.name=compute_score {data('unknown_source')}",
    "paced.pass_rate.file=@pr_good.parquet",
    "paced.pass_rate.file=@pr_zero.parquet paced.weight.estimate=posterior paced.weight.prior=[1,1]",
    "paced.pass_rate.file=@pr_one.parquet paced.weight.kernel=uniform",
    f"{TEACHER}=Somebody/OnTheHub",
    "data.train_files=hdfs://somewhere/train.parquet",
]


@pytest.mark.parametrize("overrides", GOOD)
def test_what_can_be_used_passes(folder: Path, overrides: str) -> None:
    assert problems_of(folder, *overrides.split(" ")) == []


def test_a_reward_that_does_not_answer_is_said_and_not_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "slow.py").write_text("import time\ndef compute_score(**row):\n    time.sleep(60)")
    config = config_of(folder, f"{REWARD}.path={tmp_path}/slow.py")
    rows = Rows.read(config, PacedConfig.parse(OmegaConf.to_container(config.paced, resolve=True)))
    assert list(reward_function(config, rows, limit_s=0.05)) == []
    assert "has not answered within 0.05 s for data_source=openai/gsm8k" in capsys.readouterr().out


def test_a_judge_that_is_missing_is_named_before_a_gpu_is_taken(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "math_verify", None)
    (problem,) = problems_of(folder, f"{REWARD}.path=pkg://paced_verl.tasks.reward")
    assert "math-verify judges answers" in problem
    assert "pip install 'paced-verl[tasks]'" in problem


def test_rows_of_a_teacher_that_does_not_exist_are_counted(folder: Path) -> None:
    def two_teachers(config: DictConfig) -> None:
        teachers = config.distillation.teacher_models
        teachers.teacher_model.key = "openai/gsm8k"
        OmegaConf.update(
            config, "distillation.teacher_models.code", {**teachers.teacher_model, "key": "code"}, force_add=True
        )

    assert problems_of(folder, data("good"), change=two_teachers) == []
    (problem,) = problems_of(folder, data("unknown_source"), change=two_teachers)
    assert "my_problems (1 rows)" in problem
    assert "openai/gsm8k, code" in problem
    validation = ["data.val_files=@unknown_source.parquet", f"{REWARD}.path=@good.py"]
    assert problems_of(folder, data("good"), *validation, change=two_teachers) == [], "validation asks no teacher"


def test_each_teachers_context_is_asked_of_its_own_rows(folder: Path) -> None:
    def two_teachers(config: DictConfig) -> None:
        teachers = config.distillation.teacher_models
        teachers.teacher_model.key = "math_dapo"
        OmegaConf.update(
            config, "distillation.teacher_models.code", {**teachers.teacher_model, "key": "math"}, force_add=True
        )

    sources = some("math_dapo", "math", 4, 5, 6)
    mixed = solutions(*some(TEXT, None, 5, 6))
    write_data(folder / "mixed.parquet", data_source=sources, extra_info=mixed)
    overrides = [data("mixed"), "data.val_files=@mixed.parquet"]
    fine = "paced.teacher.context={math_dapo:solution,math:none}"
    assert problems_of(folder, *overrides, fine, change=two_teachers) == []
    (problem,) = problems_of(
        folder, *overrides, "paced.teacher.context={math_dapo:none,math:solution}", change=two_teachers
    )
    assert "2 of 12 rows" in problem
    assert "the first is row 5" in problem


def test_each_data_source_has_its_context_and_only_its_rows_need_what_it_shows(folder: Path) -> None:
    sources = some("openai/gsm8k", "code", 4, 5, 6)
    write_data(folder / "sources.parquet", data_source=sources, extra_info=solutions(*some(TEXT, None, 5, 6)))
    own = [data("sources"), "data.val_files=@unknown_source.parquet", f"{REWARD}.path=@good.py"]

    def problems(named: str, *overrides: str) -> list[str]:
        return problems_of(folder, *own, f"paced.teacher.context={{{named}}}", *overrides)

    assert problems("data_source:{openai/gsm8k:solution,code:none}") == []
    assert problems("data_source:{openai/gsm8k:solution},others:answer") == []
    assert problems("data_source:{code:none},others:solution") == []
    both = "data.train_files=[@sources.parquet,@good.parquet]"
    assert problems("data_source:{openai/gsm8k:solution,code:none}", both) == []
    assert problems("data_source:{openai/gsm8k:solution,code:none}", data("good")) == [
        "paced.teacher.context.data_source.code: the training data have no such data source; they have openai/gsm8k "
        "(12 rows)."
    ]
    for named in ("{openai/gsm8k:none,code:solution}", "{openai/gsm8k:none},others:solution"):
        (problem,) = problems(f"data_source:{named}")
        assert "2 of 12 rows" in problem
        assert "the first is row 5" in problem
    (problem,) = problems("data_source:{openai/gsm8k:solution}")
    assert "names no context for 3 rows of code" in problem
    assert "openai/gsm8k (9 rows), code (3 rows)" in problem
    (problem,) = problems("data_source:{open/gsm8k:solution},others:none")
    assert "paced.teacher.context.data_source.open/gsm8k: the training data have no such data source" in problem
    assert "Did you mean 'openai/gsm8k'?" in problem
    (problem,) = problems("data_source:{openai/gsm8k:solution},others:none", data("source_none_some"))
    assert "have no data_source" in problem, "which of the two such a row is nobody knows"
    numbers = problems("data_source:{math:none},others:none", data("other_types"))
    assert "they have 0 (1 rows), 1 (1 rows), 2 (1 rows)" in numbers[0]


def test_the_longest_prompts_are_those_of_a_contexts_own_sources(folder: Path) -> None:
    texts = [TEXT * (40 if i in (4, 5) else 1) for i in range(ROWS)]
    write_data(folder / "long.parquet", data_source=some("a", "b", 4, 5), extra_info=solutions(*texts))
    limit = "distillation.teacher_models.teacher_model.inference.max_model_len=100"
    own = [
        data("long"),
        f"{REWARD}.path=@good.py",
        limit,
        "paced.teacher.context={data_source:{a:solution},others:none}",
    ]
    assert problems_of(folder, *own) == []
    (problem,) = problems_of(folder, *own[:-1], "paced.teacher.context={data_source:{a:none},others:solution}")
    assert "max_model_len=100 is too short" in problem
    assert "paced.teacher.context=solution" in problem


@pytest.mark.parametrize(
    ("files", "overrides", "expected"),
    [
        ("@good.parquet", [], ROWS),
        ("@good.jsonl", [], ROWS),
        ("@good.json", [], ROWS),
        ("[@good.jsonl,@good.parquet]", ["data.train_max_samples=20"], 20),
        ("[@good.jsonl,@good.parquet]", ["data.train_max_samples=200"], 2 * ROWS),
        ("hf://somebody/train.parquet", [], None),
    ],
)
def test_the_number_of_prompts_of_every_kind_of_file(
    folder: Path, files: str, overrides: list[str], expected: int | None
) -> None:
    assert (
        number_of_prompts(config_of(folder, f"data.train_files={files}".replace("@", f"{folder}/"), *overrides))
        == expected
    )


def test_the_pass_knows_the_longest_prompts_and_the_name_of_the_data_whatever_the_blocks(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against plain Python over all rows at once."""
    import paced_verl.checks.rows as module

    size = 5000
    texts = ["two " * (1 + (37 * i) % 211) for i in range(size)]
    prompts = [messages(f"problem {i}") for i in range(size)]
    columns = {
        "data_source": ["openai/gsm8k"] * size,
        "prompt": prompts,
        "reward_model": [TRUTH] * size,
        "extra_info": [{"solution": text} for text in texts],
    }
    pq.write_table(pa.table(columns), tmp_path / "many.parquet", row_group_size=900)
    monkeypatch.setattr(module, "LONGEST", 30)
    config = config_of(folder, f"data.train_files={tmp_path}/many.parquet", SOLUTION)
    rows = Rows.read(config, PacedConfig.parse(OmegaConf.to_container(config.paced, resolve=True)))
    assert rows.problems == []
    sizes = sorted(sum(len(m["content"]) for m in prompt) for prompt in rows.longest[SOLUTION])
    assert len(sizes) == 30
    longest = sorted(texts, key=len)[-30:]
    assert np.diff(sizes).tolist() == pytest.approx(np.diff([len(t.strip()) for t in longest]), abs=4)
    assert rows.fingerprint == fingerprint(prompts[place] for place in spread(range(size)))
