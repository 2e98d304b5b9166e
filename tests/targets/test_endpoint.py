"""The endpoint against a real HTTP server that speaks chat completions, and fails in the ways that servers fail."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from paced_verl.config import ConfigError, PacedConfig
from paced_verl.targets.endpoint import PATIENCE, Endpoint
from paced_verl.targets.judge import Judge
from paced_verl.targets.queue import Waiting
from paced_verl.targets.store import TargetStore
from paced_verl.teacher.context import TeacherContext

WORDS = ["problem", "is", *map(str, range(20))]
RESPONSE_LENGTH = 8
STAGES = [{"until": 1.0, "divergence": "forward_kl", "responses": "teacher"}]


class ChatServer(ThreadingHTTPServer):
    """Answers ``POST …/chat/completions`` with what ``respond`` makes of the question and of how often it was asked.

    ``respond`` returns a body to send with status 200 (see :func:`reply`), or (status, headers, body); ``None`` hangs
    up. ``requests`` are the bodies that came, ``keys`` what they were sent with, ``arrivals`` their times by question.
    """

    daemon_threads = True

    def __init__(self, respond: Callable[[str, int], Any]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.respond = respond
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.arrivals: dict[str, list[float]] = {}
        self.in_flight = self.most_in_flight = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    @property
    def asked(self) -> Counter[str]:
        return Counter(request["messages"][-1]["content"] for request in self.requests)


class _Handler(BaseHTTPRequestHandler):
    server: ChatServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        server, request = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = request["messages"][-1]["content"]
        with server.lock:
            server.requests.append(request)
            server.keys.append(self.headers["Authorization"])
            server.arrivals.setdefault(question, []).append(time.monotonic())
            attempt = len(server.arrivals[question])
            server.in_flight += 1
            server.most_in_flight = max(server.most_in_flight, server.in_flight)
        response = server.respond(question, attempt)
        with server.lock:
            server.in_flight -= 1
        if response is None or self.path != "/v1/chat/completions":
            self.close_connection = True
            return
        status, headers, body = response if isinstance(response, tuple) else (200, {}, response)
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        kind = "text/html" if isinstance(body, str) else "application/json"
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


def reply(text: str | None, finish: str = "stop", tokens: tuple[int, int] | None = (0, 0)) -> dict[str, Any]:
    """A chat completion; ``tokens`` are the prompt's and the answer's, as the server counts them."""
    usage = (
        {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": sum(tokens)} if tokens else None
    )
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}


def failure(status: int, message: str, **headers: str) -> tuple[int, dict[str, str], dict[str, Any]]:
    return status, headers, {"error": {"message": message}}


@contextmanager
def serving(respond: Callable[[str, int], Any]) -> Iterator[ChatServer]:
    server = ChatServer(respond)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def word_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(["<unk>", "<end>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<end>")


def row_of(index: int) -> dict[str, Any]:
    return {
        "raw_prompt": [{"role": "system", "content": "be brief"}, {"role": "user", "content": f"problem {index}"}],
        "data_source": "task",
        "reward_model": {"ground_truth": str(index)},
        "extra_info": {},
    }


def score(data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any]) -> float:
    return float(solution_str.split()[-1:] == [ground_truth])


class Desk:
    """An endpoint, the rows that wait for it, and where their targets go."""

    def __init__(self, url: str, file: Path, rows: int, context: str = "none", reward: Any = score, **settings: Any):
        own = {key: settings.pop(key) for key in ("keep", "attempts", "temperature", "top_p") if key in settings}
        endpoint = {"url": url, "model": "m", "retries": 0, "concurrency": 4, **settings}
        targets = {"file": str(file), "endpoint": endpoint, **own}
        self.paced = PacedConfig.parse({"schedule": STAGES, "targets": targets})
        self.tokenizer, self.store, self.file = word_tokenizer(), TargetStore(), file
        self.rows, self.reward = [row_of(i) for i in range(rows)], reward
        self.endpoint = Endpoint(
            self.paced.targets, lambda row: TeacherContext(context), self.tokenizer, RESPONSE_LENGTH
        )

    def write(self) -> dict[str, float]:
        rows = range(len(self.rows))
        judge = Judge(self.tokenizer, self.reward, self.paced.pass_rate.threshold)
        with Waiting(rows, self.rows, self.store, self.paced.targets, judge) as waiting:
            return self.endpoint.write(waiting)

    def saved(self) -> TargetStore:
        store = TargetStore()
        store.load(self.file)
        return store

    def tokens(self, text: str) -> tuple[int, ...]:
        return (*(self.tokenizer.get_vocab()[word] for word in text.split()), self.tokenizer.get_vocab()["<end>"])


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    return tmp_path / "targets.parquet"


def number(question: str) -> int:
    return int(question.split()[-1])


def answer(question: str, attempt: int) -> dict[str, Any]:
    return reply(f"{question} is {number(question)}")


def test_answers_become_targets_in_the_students_tokens(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    with serving(answer) as server:
        desk = Desk(server.url, file, 5, temperature=0.5, top_p=0.9, api_key_env="MY_KEY")
        desk.write()
    saved = desk.saved()
    assert len(saved) == 5
    for i in range(5):
        assert saved[i].token_ids == desk.tokens(f"problem {i} is {i}")
        assert (saved[i].response, saved[i].correct) == (f"problem {i} is {i}", True)
        assert saved.get(i, desk.rows[i]["raw_prompt"]) == saved[i], "stored for this prompt's text"
    assert server.asked == {f"problem {i}": 1 for i in range(5)}
    first = next(request for request in server.requests if request["messages"][-1]["content"] == "problem 0")
    assert first == {
        "model": "m",
        "messages": desk.rows[0]["raw_prompt"],
        "temperature": 0.5,
        "top_p": 0.9,
        "max_tokens": RESPONSE_LENGTH,
    }
    assert set(server.keys) == {"Bearer secret"}


def test_the_teacher_is_asked_under_its_own_context(file: Path) -> None:
    with serving(lambda question, attempt: reply("0")) as server:
        desk = Desk(server.url, file, 3, context="answer")
        desk.write()
    messages = [TeacherContext("answer").messages(row) for row in desk.rows]
    assert sorted(map(str, messages)) == sorted(str(request["messages"]) for request in server.requests)
    assert messages[1] != desk.rows[1]["raw_prompt"]
    assert desk.saved().get(1, desk.rows[1]["raw_prompt"]), "but stored under the student's prompt"


def test_parameters_are_sent_and_null_takes_ours_away(file: Path) -> None:
    parameters = {"max_tokens": None, "max_completion_tokens": 99, "chat_template_kwargs": {"enable_thinking": False}}
    with serving(answer) as server:
        Desk(server.url, file, 1, parameters=parameters).write()
    (request,) = server.requests
    assert "max_tokens" not in request
    assert request["max_completion_tokens"] == 99
    assert request["chat_template_kwargs"] == {"enable_thinking": False}


def test_concurrency_is_reached_and_not_exceeded(file: Path) -> None:
    """A barrier lets answers go three at a time: two in flight would wait for ever, and a fourth would be counted."""
    barrier = threading.Barrier(3, timeout=10)

    def respond(question: str, attempt: int) -> Any:
        barrier.wait()
        time.sleep(0.02)
        return answer(question, attempt)

    with serving(respond) as server:
        desk = Desk(server.url, file, 12, concurrency=3)
        desk.write()
    assert server.most_in_flight == 3
    assert len(desk.saved()) == 12


def test_what_may_pass_is_tried_again(file: Path) -> None:
    """Too many requests, a server error, a hang-up and a timeout: once each, and every prompt has its answer."""

    def respond(question: str, attempt: int) -> Any:
        if attempt == 2 or number(question) == 4:
            return answer(question, attempt)
        if number(question) == 3:
            time.sleep(0.8)
            return answer(question, attempt)
        return [failure(429, "slow down", **{"Retry-After": "0.9"}), failure(500, "oops"), None][number(question)]

    with serving(respond) as server:
        desk = Desk(server.url, file, 5, retries=2, timeout=0.3, concurrency=5)
        counts = desk.write()
    assert server.asked == {"problem 0": 2, "problem 1": 2, "problem 2": 2, "problem 3": 2, "problem 4": 1}
    assert counts["retries"] == 4
    assert all(desk.saved()[i].correct for i in range(5))
    first, second = server.arrivals["problem 0"]
    assert second - first >= 0.9, "not before the server said; without its word it would be half a second"


@pytest.mark.parametrize(
    ("status", "times", "words"),
    [
        (400, 1, ["HTTP 400", "context of 7 tokens"]),
        (401, 1, ["401", "Is OPENAI_API_KEY the right key?"]),
        (404, 1, ["404", "model=m"]),
        (503, 2, ["503", "the same command goes on"]),
    ],
)
def test_a_server_that_refuses_ends_the_run_with_its_words(
    file: Path, status: int, times: int, words: list[str]
) -> None:
    """At once on a request that cannot pass, after all retries on one that could; what was answered is stored."""

    def respond(question: str, attempt: int) -> Any:
        return failure(status, "context of 7 tokens") if number(question) == 3 else answer(question, attempt)

    with serving(respond) as server:
        desk = Desk(server.url, file, 10, concurrency=1, retries=1)
        with pytest.raises(ConnectionError) as error:
            desk.write()
    assert server.asked == {"problem 0": 1, "problem 1": 1, "problem 2": 1, "problem 3": times}
    for word in (server.url, *words):
        assert word in str(error.value)
    saved = desk.saved()
    assert [i for i in range(10) if i in saved] == [0, 1, 2]


def test_no_server_and_no_endpoint_there(file: Path) -> None:
    page = "<html>hello</html>"
    wrong = pytest.raises(ConnectionError, match=r"not an answer to a chat completion.*hello.*/v1")
    with serving(lambda question, attempt: page) as server, wrong:
        Desk(server.url, file, 1).write()
    with pytest.raises(ConnectionError, match="Connection error"):
        Desk(server.url, file, 1).write()
    assert not file.exists(), "nothing to store, nothing stored"


def test_tokens_and_cost_are_the_servers_counts(file: Path) -> None:
    """Of every answer, kept or not: prompts 2 and 3 are right at the second attempt. No count adds nothing."""

    def respond(question: str, attempt: int) -> Any:
        i = number(question)
        if i == 0:
            return reply("0", tokens=None)
        return reply(f"is {i if attempt == 2 or i == 1 else 19}", tokens=(1000 * i, 7))

    with serving(respond) as server:
        desk = Desk(server.url, file, 4, keep="correct", attempts=2, input_price=3.0, output_price=1500.0)
        counts = desk.write()
    assert server.asked == {"problem 0": 1, "problem 1": 1, "problem 2": 2, "problem 3": 2}
    tokens_in, tokens_out = 1000 + 2 * 2000 + 2 * 3000, 5 * 7
    assert (counts["tokens in"], counts["tokens out"]) == (tokens_in, tokens_out)
    assert counts["cost"] == pytest.approx((tokens_in * 3 + tokens_out * 1500) / 1e6)


LONGEST = " ".join(["is"] * (RESPONSE_LENGTH - 1))


@pytest.mark.parametrize(
    ("first", "finished"),
    [
        (reply("is 0", finish="length"), False),
        (reply("is 0", finish="content_filter"), False),
        (reply(None), False),
        (reply(" \n"), False),
        (reply(f"{LONGEST} is"), False),
        (reply(LONGEST), True),
    ],
)
def test_an_unfinished_answer_is_not_kept(file: Path, first: dict[str, Any], finished: bool) -> None:
    """Under keep: all, too. With attempts left it is asked again; without, the prompt is stored as skipped."""

    def respond(question: str, attempt: int) -> Any:
        return first if number(question) == 0 and attempt == 1 else reply("is 5")

    with serving(respond) as server:
        once, twice = (Desk(server.url, file.with_name(f"{attempts}"), 2, attempts=attempts) for attempts in (1, 2))
        counts = once.write()
        server.arrivals.clear()
        twice.write()
    text = first["choices"][0]["message"]["content"]
    assert counts["unfinished"] == (not finished)
    assert once.saved()[0].token_ids == (once.tokens(text) if finished else ())
    assert twice.saved()[0].response == (text if finished else "is 5")


def test_a_correct_answer_is_asked_for_up_to_so_many_times(file: Path) -> None:
    """Prompt i is right at its i-th attempt, so 4 and 5 are given up. The reward runs an event loop of its own."""

    def respond(question: str, attempt: int) -> Any:
        return reply(f"is {number(question) if attempt == number(question) else 19}")

    def reward(**arguments: Any) -> dict[str, float]:
        import asyncio

        asyncio.run(asyncio.sleep(0))
        return {"score": 0.0, "acc": score(**arguments)}

    with serving(respond) as server:
        desk = Desk(server.url, file, 6, keep="correct", attempts=3, reward=reward)
        desk.write()
    assert server.asked == {f"problem {i}": min(i, 3) if i else 3 for i in range(6)}
    saved = desk.saved()
    assert [bool(saved[i].token_ids) for i in range(6)] == [False, True, True, True, False, False]
    assert [saved[i].correct for i in range(6)] == [False, True, True, True, False, False]


@pytest.mark.parametrize(
    ("unusable", "words"),
    [
        (reply(None), ["no text", "reasoning parser", "paced.targets.endpoint.parameters"]),
        (reply(None, finish="tool_calls"), ["no text", "finish_reason: tool_calls"]),
        (reply(None, finish="length"), ["finish_reason: length", "data.max_response_length"]),
        (reply(f"{LONGEST} is"), [f"longer than data.max_response_length={RESPONSE_LENGTH}"]),
        (reply("is 0", finish="content_filter"), ["finish_reason: content_filter"]),
    ],
)
def test_a_server_that_gives_nothing_of_use_is_not_asked_to_the_end(
    file: Path, unusable: dict[str, Any], words: list[str]
) -> None:
    """After 32 answers and what is in flight then, with the cause; and nothing is stored for these prompts."""
    with serving(lambda question, attempt: unusable) as server:
        desk = Desk(server.url, file, 100, concurrency=2, attempts=2)
        with pytest.raises(ConfigError) as error:
            desk.write()
    assert PATIENCE <= len(server.requests) <= PATIENCE + 2
    for word in (server.url, f"the first {PATIENCE} answers", f"{PATIENCE} × ", *words):
        assert word in str(error.value)
    assert not file.exists()


def test_one_answer_of_use_is_reason_to_go_on(file: Path) -> None:
    with serving(
        lambda question, attempt: answer(question, attempt) if number(question) == 20 else reply("")
    ) as server:
        desk = Desk(server.url, file, 100, concurrency=1)
        assert desk.write()["unfinished"] == 99
    assert (len(desk.saved()), desk.saved().responses) == (100, 1)


def test_a_prompt_with_an_image_is_refused(file: Path) -> None:
    with serving(answer) as server:
        desk = Desk(server.url, file, 1)
        desk.rows[0]["raw_prompt"][-1]["content"] = [{"type": "image"}]
        with pytest.raises(ConfigError, match="text only"):
            desk.write()
    assert not server.requests


@pytest.mark.parametrize(
    ("endpoint", "words"),
    [
        ({"url": "api.example.com/v1", "model": "m"}, ["paced.targets.endpoint.url='api.example.com/v1'", "https"]),
        ({"url": "https://", "model": "m"}, ["paced.targets.endpoint.url='https://'"]),
        ({"url": "https:///v1", "model": "m"}, ["paced.targets.endpoint.url='https:///v1'"]),
        ({"url": "https://:8000/v1", "model": "m"}, ["paced.targets.endpoint.url='https://:8000/v1'"]),
        ({"url": "https://x y/v1", "model": "m"}, ["paced.targets.endpoint.url='https://x y/v1'"]),
        ({"url": "https://x/v 1", "model": "m"}, ["paced.targets.endpoint.url='https://x/v 1'"]),
        ({"url": "https://x/v1", "model": "m", "api_key_env": ""}, ["paced.targets.endpoint.api_key_env=''"]),
        ({"url": "http://a/v1"}, ["paced.targets.endpoint.model is missing"]),
        ({"url": "http://a/v1", "model": "m", "retry": 2}, ["paced.targets.endpoint.retry is not", "'retries'"]),
        ({"url": "http://a/v1", "model": "m", "concurrency": 0}, ["paced.targets.endpoint.concurrency=0"]),
    ],
)
def test_a_wrong_block_says_so(endpoint: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        PacedConfig.parse({"schedule": STAGES, "targets": {"endpoint": endpoint}})
    for word in words:
        assert word in str(error.value)
