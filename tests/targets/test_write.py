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

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from paced_verl import fields
from paced_verl.checks import check
from paced_verl.config import ConfigError, PacedConfig
from paced_verl.fingerprint import prompt_hash
from paced_verl.run.state import PacedState
from paced_verl.targets import queue
from paced_verl.targets.store import Target, TargetStore
from paced_verl.targets.write import generate_targets
from tests.checks.test_checks import ROWS, config_of, write_data, write_model
from tests.targets.test_endpoint import STAGES, ChatServer, failure, number, reply, serving


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
    config = config_of(
        folder,
        "data.max_response_length=8",
        "distillation.teacher_models.teacher_model.model_path=nobody/nothing",
        "trainer.total_training_steps=3",
        "reward.custom_reward_function.path=pkg://paced_verl.tasks.reward",
        "reward.custom_reward_function.name=compute_score",
        *overrides,
        group=group,
    )
    return generate_targets(config, check(config)[0])


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
    monkeypatch.setattr("paced_verl.targets.offline.CHUNK", 5)
    settings = ["paced.targets.keep=correct", "paced.targets.attempts=3", "paced.targets.temperature=0.25"]
    offline = targets(folder, f"paced.targets.file={file}", *settings)
    assert offline == {"stored": 9, "new": 9, "skipped": 3}
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


def test_what_was_skipped_is_asked_again(folder: Path, file: Path) -> None:
    """Problems 3, 7 and 11 are right at their fourth attempt only: the first one of the next command."""
    settings = [f"paced.targets.file={file}", "paced.targets.keep=correct", "paced.targets.attempts=3"]
    with serving(lambda question, attempt: reply(written(question, attempt))) as server:
        first = targets(folder, *settings, *endpoint(server))
        store = TargetStore()
        store.load(file)
        assert [i for i in range(ROWS) if not store.has_response(i)] == [3, 7, 11]
        assert len(store) == ROWS, "that none could be had is stored, too: a run does not ask"
        server.requests.clear()
        second = targets(folder, *settings, *endpoint(server))
        assert server.asked == {"problem 3": 1, "problem 7": 1, "problem 11": 1}
    assert [(counts["stored"], counts["new"], counts["skipped"]) for counts in (first, second)] == [
        (9, 9, 3),
        (12, 3, 0),
    ]
    gone = endpoint(server)
    assert targets(folder, *settings, *gone) == {"stored": 12, "new": 0, "skipped": 0}


@pytest.mark.parametrize("file_before", [False, True])
def test_a_server_whose_answers_have_no_text_stores_nothing(folder: Path, file: Path, file_before: bool) -> None:
    if file_before:
        store = TargetStore()
        store.add(0, Target((2, 3), "problem is"))
        store.save(file)
    with serving(lambda question, attempt: reply(None)) as server:
        settings = [f"paced.targets.file={file}", *endpoint(server)]
        if not file_before:
            with pytest.raises(
                ConfigError, match=r"the first 12 answers are unusable\. 12 × no text .* reasoning parser"
            ):
                targets(folder, *settings)
            assert not file.exists()
        else:  # a few that never fit a file are no reason to fail
            assert targets(folder, *settings)["skipped"] == ROWS - 1


def test_no_response_that_could_be_kept_is_an_error(folder: Path, file: Path) -> None:
    with serving(lambda question, attempt: reply("is wrong")) as server:
        settings = [f"paced.targets.file={file}", "paced.targets.keep=correct", *endpoint(server)]
        with pytest.raises(ConfigError, match=r"asked about 12 prompts.*paced\.targets\.keep=correct.*reward function"):
            targets(folder, *settings)
    assert not file.exists()


def test_a_file_says_whose_it_is(folder: Path, file: Path, tmp_path: Path) -> None:
    with serving(lambda question, attempt: reply(f"= {number(question)}")) as server:
        targets(folder, f"paced.targets.file={file}", *endpoint(server))
    metadata = pq.read_schema(file).metadata
    assert len(metadata[b"paced_verl.data"]) == len(metadata[b"paced_verl.tokenizer"]) == 16

    # The same prompts in another order: every stored prompt is there, but not in its place.
    table = pq.read_table(folder / "train.parquet")
    pq.write_table(table.take(list(reversed(range(ROWS)))), tmp_path / "reversed.parquet")
    with pytest.raises(ValueError, match=r"expected teacher responses for data set .* found those for"):
        targets(folder, f"paced.targets.file={file}", f"data.train_files={tmp_path}/reversed.parquet")


@pytest.mark.parametrize("how", ["Ctrl-C", "refused", "SIGKILL"])
def test_an_interrupted_command_asks_for_the_rest(
    folder: Path, file: Path, how: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """What was answered is not asked again; at most what was in flight is. After SIGKILL, what was saved meanwhile."""
    first, interrupted = TargetStore(), False
    # A shell script has what it starts in the background ignore SIGINT: these tests, too.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))

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
                patch.setattr(queue, "SAVE_SECONDS", 0.0)
                patch.setattr(queue, "SAVE_SHARE", 1e9)
                patch.setattr(queue.Waiting, "__exit__", lambda self, *_: None)
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


def test_a_run_takes_what_is_stored_then_the_column_and_no_blank(folder: Path) -> None:
    """A response that is stored comes first, one in the data before the knowledge that none could be had."""
    tokenizer, store = AutoTokenizer.from_pretrained(folder / "student"), TargetStore()
    texts = ["problem is", "problem is", "problem is", "", None, " "]
    prompts = [[{"role": "user", "content": f"problem {i}"}] for i in range(len(texts))]
    dataset = [{"raw_prompt": prompt, "response": text} for prompt, text in zip(prompts, texts, strict=True)]
    store.add(0, Target((9,), "2"))
    store.add(1, Target(()))
    store.add(5, Target(()))
    block = {"targets": {"column": "response"}, "schedule": STAGES}
    paced, size = PacedConfig.parse(block), len(texts)
    schedule = paced.build_schedule(1)
    run = PacedState(paced, schedule, prompts=size, epoch_size=size, dataset=dataset, tokenizer=tokenizer)
    run.targets = store
    ids = [*tokenizer.encode("problem is", add_special_tokens=False), tokenizer.eos_token_id]
    taken = run.tell(np.arange(size), step=1)[fields.TARGET]
    assert taken == [[9], ids, ids, None, None, []]
    assert store[1] == Target(tuple(ids), "problem is", None, prompt_hash(prompts[1]))
    assert 3 not in store


def test_each_data_source_is_asked_under_its_context(folder: Path, file: Path) -> None:
    def respond(question: str, attempt: int) -> Any:
        return reply("is 2" if question.count("problem") > 1 else "is 1")

    table = pq.read_table(folder / "train.parquet")
    sources = pa.array(["code" if i == 3 else "math" for i in range(ROWS)])
    place = table.schema.get_field_index("data_source")
    data = folder / "two_sources.parquet"
    pq.write_table(table.set_column(place, "data_source", sources), data)
    context = "paced.teacher.context={data_source:{code:none},others:answer}"
    with serving(respond) as server:
        targets(folder, f"data.train_files={data}", context, f"paced.targets.file={file}", *endpoint(server))
    store = TargetStore()
    store.load(file)
    assert [store[i].response for i in range(ROWS)] == ["is 1" if i == 3 else "is 2" for i in range(ROWS)]


def test_what_cannot_be_written_ahead_says_so(folder: Path, file: Path) -> None:
    with pytest.raises(ConfigError, match=r"paced\.targets\.file is not set"):
        targets(folder)
    settings = [f"paced.targets.file={file}", "paced.teacher.context=rollout", "actor_rollout_ref.rollout.n=2"]
    with pytest.raises(ConfigError, match=r"paced\.teacher\.context=rollout .* only a run has"):
        targets(folder, *settings, group="reverse_kl")
