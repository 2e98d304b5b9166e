"""``paced-verl targets``: one file, whoever writes it and however often it is interrupted."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from paced_verl import generate, waiting
from paced_verl.config import ConfigError
from paced_verl.generate import generate_targets
from paced_verl.launch import compose
from paced_verl.targets import TargetStore
from tests.test_checks import ROWS, write_data, write_model
from tests.test_endpoint import ChatServer, failure, number, reply, serving


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    # Problem i has the answer i.
    truths = [{"style": "rule", "ground_truth": str(i)} for i in range(ROWS)]
    write_data(folder / "train.parquet", reward_model=truths, data_source=["reasoning_gym/chain_sum"] * ROWS)
    write_model(folder / "student", ["problem", "is", *map(str, range(20))])
    tokenizer = AutoTokenizer.from_pretrained(folder / "student")
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    tokenizer.save_pretrained(folder / "student")
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    (folder / "student" / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "targets.parquet"


def targets(folder: Path, *overrides: str, group: str = "two_stage") -> dict[str, float]:
    """``paced-verl targets``, without its command line. The teacher's model is nowhere: nothing may load it."""
    return generate_targets(
        compose(
            [
                f"+paced={group}",
                "+machine=cpu",
                f"data.train_files={folder}/train.parquet",
                f"data.val_files={folder}/train.parquet",
                "data.train_batch_size=4",
                "data.max_prompt_length=32",
                "data.max_response_length=8",
                f"actor_rollout_ref.model.path={folder}/student",
                "distillation.teacher_models.teacher_model.model_path=nobody/nothing",
                "actor_rollout_ref.actor.ppo_mini_batch_size=4",
                "trainer.total_training_steps=3",
                "reward.custom_reward_function.path=pkg://paced_verl.tasks.reward",
                "reward.custom_reward_function.name=compute_score",
                *overrides,
            ]
        )
    )


def endpoint(server: ChatServer, *overrides: str) -> list[str]:
    url = f"+paced.targets.endpoint.url={server.url}"
    return [url, "+paced.targets.endpoint.model=m", "+paced.targets.endpoint.concurrency=2", *overrides]


def right_after(question: str) -> int:
    """At which attempt a problem is answered correctly: the first to the fourth."""
    return 1 + number(question) % 4


def written(question: str, attempt: int) -> str:
    return f"= {number(question) if attempt >= right_after(question) else 19}"


@pytest.fixture
def offline_engine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """vLLM's offline engine, which answers as :func:`written`, by the prompt's tokens; sizes of the batches it got."""
    tokenizer, sizes, asked = AutoTokenizer.from_pretrained(folder / "student"), [], {}

    class Engine:
        def __init__(self, model: str, **_: Any):
            assert model == "nobody/nothing"

        def generate(self, inputs: list[dict[str, Any]], sampling: dict[str, Any], use_tqdm: bool) -> list[Any]:
            assert sampling == {"temperature": 0.25, "top_p": 1.0, "max_tokens": 8}
            sizes.append(len(inputs))
            return [self.answer(tokenizer.decode(one["prompt_token_ids"])) for one in inputs]

        def answer(self, question: str) -> Any:
            asked[question] = asked.get(question, 0) + 1
            text = written(question, asked[question])
            token_ids = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
            return SimpleNamespace(outputs=[SimpleNamespace(token_ids=token_ids)])

    vllm = SimpleNamespace(LLM=Engine, SamplingParams=dict, TokensPrompt=dict)
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    return sizes


def test_the_file_is_the_same_whoever_writes_it(
    folder: Path, file: Path, offline_engine: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Problem i is right at attempt 1 + i mod 4; three attempts leave three problems of twelve without a response."""
    monkeypatch.setattr(generate, "CHUNK", 5)
    settings = ["paced.targets.keep=correct", "paced.targets.attempts=3", "paced.targets.temperature=0.25"]
    offline = targets(folder, f"paced.targets.file={file}", *settings)
    assert offline == {"stored": 12, "new": 12, "skipped": 3}
    assert max(offline_engine) == 5
    assert sum(offline_engine) == 3 * (1 + 2 + 3 + 3)

    other = file.with_name("other.parquet")
    with serving(lambda question, attempt: reply(written(question, attempt), tokens=(3, 2))) as server:
        asked = targets(folder, f"paced.targets.file={other}", *settings, *endpoint(server))
    assert pq.read_table(other).equals(pq.read_table(file))
    assert asked == {
        **offline,
        "unfinished": 0,
        "retries": 0,
        "tokens in": 27 * 3,
        "tokens out": 27 * 2,
        "cost": 0.0,
    }
    assert server.asked == {f"problem {i}": min(1 + i % 4, 3) for i in range(ROWS)}

    gone = endpoint(server)
    assert targets(folder, f"paced.targets.file={other}", *settings, *gone) == {"stored": 12, "new": 0, "skipped": 3}


@pytest.mark.parametrize("how", ["Ctrl-C", "refused", "SIGKILL"])
def test_an_interrupted_command_asks_for_the_rest(
    folder: Path, file: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was answered is not asked again; at most what was in flight is. After SIGKILL, what was saved meanwhile."""
    first, interrupted = TargetStore(), False

    def respond(question: str, attempt: int) -> Any:
        if len(server.requests) <= 7 or interrupted:
            return reply(f"= {number(question)}")
        if how == "Ctrl-C":
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
        return failure(400, "no more")

    with serving(respond) as server:
        settings = [f"paced.targets.file={file}", *endpoint(server)]
        with monkeypatch.context() as patch:
            if how == "SIGKILL":  # nothing of ours runs any more, so only what take() saved is there
                patch.setattr(waiting, "SAVE_SECONDS", 0.0)
                patch.setattr(waiting.Waiting, "__exit__", lambda self, *_: None)
            with pytest.raises(KeyboardInterrupt if how == "Ctrl-C" else ConnectionError):
                targets(folder, *settings)
        first.load(file)
        asked = server.asked
        assert 5 <= len(first) <= 7, "of seven answers, two may have been on their way"
        assert list(asked.values()) == [1] * len(asked)

        interrupted = True
        counts = targets(folder, *settings)
    assert set(server.asked - asked) == {f"problem {i}" for i in range(ROWS) if i not in first}
    assert (counts["stored"], counts["new"], counts["skipped"]) == (ROWS, ROWS - len(first), 0)


def test_what_cannot_be_written_ahead_says_so(folder: Path, file: Path) -> None:
    with pytest.raises(ConfigError, match=r"paced\.targets\.file is not set"):
        targets(folder)
    settings = [f"paced.targets.file={file}", "paced.teacher.context=rollout", "actor_rollout_ref.rollout.n=2"]
    with pytest.raises(ConfigError, match=r"paced\.teacher\.context=rollout .* only a run has"):
        targets(folder, *settings, group="reverse_kl")
