"""A teacher behind an OpenAI-compatible endpoint: it writes the responses of ``paced-verl targets``, as text.

The server is sent the teacher's messages and applies its own chat template. What comes back is the text of the answer
(``message.content``; what a server's reasoning parser has moved elsewhere is not seen), in the student's tokens, with
an end of sequence. An answer that did not end by itself (``finish_reason`` other than ``stop``), is empty, or is longer
than ``data.max_response_length`` student tokens would teach to stop at its end: it is an attempt that is not kept. If
all answers are such from the first on, the command ends and names the causes.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from paced_verl.config import ConfigError, TargetsConfig
from paced_verl.targets.queue import Waiting
from paced_verl.teacher.context import TeacherContext

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from openai.types.chat import ChatCompletion
    from openai.types.chat.chat_completion import Choice

PATIENCE = 32  # answers; if all of the first ones are unusable, more would only cost more


class Endpoint:
    """Writes responses by asking ``targets.endpoint``.

    Args:
        targets: With an ``endpoint``.
        context_of: What the teacher of a row sees.
        tokenizer: The student's.
        response_length: Most tokens of a response, its end of sequence included; sent as ``max_tokens``.

    Attributes:
        tokens_in, tokens_out: Of all answers, kept or not, as the server counts them; 0 where it does not.
        usable: Number of answers that could be kept.
        unusable: The others, by cause: cut off, empty or too long.
        retries: Requests sent again by the client.
    """

    def __init__(
        self,
        targets: TargetsConfig,
        context_of: Callable[[Mapping[str, Any]], TeacherContext],
        tokenizer: Any,
        response_length: int,
    ):
        assert targets.endpoint is not None
        self.settings = targets.endpoint
        self.context_of = context_of
        self.tokenizer = tokenizer
        self.response_length = response_length
        ours = {"temperature": targets.temperature, "top_p": targets.top_p, "max_tokens": response_length}
        self._parameters = {k: v for k, v in (ours | self.settings.parameters).items() if v is not None}
        self.tokens_in = self.tokens_out = self.usable = self.retries = 0
        self.unusable: Counter[str] = Counter()

    @property
    def cost(self) -> float:
        """Of all answers so far, in the currency of the prices."""
        return (self.tokens_in * self.settings.input_price + self.tokens_out * self.settings.output_price) / 1e6

    def write(self, waiting: Waiting) -> dict[str, float]:
        """Ask for all rows, ``concurrency`` at a time.

        Returns:
            Counts: the attributes, and the cost.

        Raises:
            ConnectionError: The server refused a request, or could not be had after all retries.
            ConfigError: A prompt is not text, or no answer can be used: none of the first ones, or of all there is.
        """
        asyncio.run(self._write(waiting))
        if not waiting.responses:
            self._check_use(least=1)
        return {
            "unfinished": self.unusable.total(),
            "retries": self.retries,
            "tokens in": self.tokens_in,
            "tokens out": self.tokens_out,
            "cost": round(self.cost, 4),
        }

    async def _write(self, waiting: Waiting) -> None:
        from openai import AsyncOpenAI  # comes with vLLM; a second to import

        settings = self.settings
        key = os.environ.get(settings.api_key_env) or "none"  # the client insists on one
        async with AsyncOpenAI(
            base_url=settings.url, api_key=key, max_retries=settings.retries, timeout=settings.timeout
        ) as client:
            # A row that is not kept goes back to `waiting`, where at least the asker that put it there finds it.
            askers = [asyncio.create_task(self._ask(client, waiting)) for _ in range(settings.concurrency)]
            try:
                await asyncio.gather(*askers)
            finally:
                for asker in askers:
                    asker.cancel()
                await asyncio.gather(*askers, return_exceptions=True)

    async def _ask(self, client: AsyncOpenAI, waiting: Waiting) -> None:
        while rows := waiting.take(1):
            ((prompt, row),) = rows
            token_ids = self._tokens(await self._answer(client, self._messages(row)))
            # A reward may wait for a judge or a subprocess, and may not run in an event loop: in a thread, as in verl.
            waiting.settle(prompt, await asyncio.to_thread(waiting.judged, row, token_ids))
            progress = f"cost {self.cost:.4g}, unfinished {self.unusable.total()}"
            waiting.progress.set_postfix_str(progress, refresh=False)
            self._check_use(least=PATIENCE)

    def _messages(self, row: Mapping[str, Any]) -> Any:
        messages = self.context_of(row).messages(row)
        if not all(isinstance(message["content"], str) for message in messages):
            raise ConfigError(
                "paced.targets.endpoint: a prompt has images or other parts; an endpoint is sent text only."
            )
        return messages

    async def _answer(self, client: AsyncOpenAI, messages: Any) -> ChatCompletion:
        import openai

        settings = self.settings
        try:
            raw = await client.chat.completions.with_raw_response.create(
                model=settings.model, messages=messages, extra_body=self._parameters
            )
            answer = raw.parse()
        except openai.APIStatusError as error:
            hint = f" Is {settings.api_key_env} the right key?" if error.status_code in (401, 403) else ""
            raise self._failed(f"HTTP {error.status_code}: {error.response.text[:500]}.{hint}") from error
        except openai.APIError as error:
            raise self._failed(f"{error.message} {error.__cause__ or ''}".rstrip()) from error
        if not getattr(answer, "choices", None):
            raise self._failed(f"not an answer to a chat completion: {raw.text[:300]!r}. Does the URL end with /v1?")
        self.retries += raw.retries_taken
        if answer.usage is not None:
            self.tokens_in += answer.usage.prompt_tokens
            self.tokens_out += answer.usage.completion_tokens
        return answer

    def _failed(self, why: str) -> ConnectionError:
        return ConnectionError(
            f"paced.targets.endpoint.url={self.settings.url}, model={self.settings.model}: {why} "
            "What was answered before is stored; the same command goes on from there."
        )

    def _tokens(self, answer: ChatCompletion) -> tuple[int, ...]:
        """The answer in the student's tokens; empty if it cannot be used."""
        choice = answer.choices[0]
        text = choice.message.content or ""
        token_ids = (*self.tokenizer.encode(text, add_special_tokens=False), self.tokenizer.eos_token_id)
        cause = _why_unusable(choice)
        if cause is None and len(token_ids) > self.response_length:
            cause = f"longer than data.max_response_length={self.response_length} student tokens: raise it"
        if cause is not None:
            self.unusable[cause] += 1
            return ()
        self.usable += 1
        return token_ids

    def _check_use(self, least: int) -> None:
        """Raise if ``least`` answers or more have come, and none could be used."""
        if self.usable or self.unusable.total() < least:
            return
        causes = "; ".join(f"{count} × {cause}" for cause, count in self.unusable.most_common())
        raise ConfigError(
            f"paced.targets.endpoint.url={self.settings.url}, model={self.settings.model}: all of the first "
            f"{self.unusable.total()} answers are unusable. {causes}. Nothing is stored for their prompts."
        )


def _why_unusable(choice: Choice) -> str | None:
    """Why an answer is not a whole response, and what to do."""
    if choice.finish_reason == "length":
        return (
            "cut off at the limit of tokens (finish_reason: length): raise data.max_response_length, or send another "
            "limit with paced.targets.endpoint.parameters"
        )
    if not (choice.message.content or "").strip():
        return (
            f"no text (content is empty, finish_reason: {choice.finish_reason}): does a reasoning parser of the server "
            "put the text elsewhere, or does the model call tools? Switch that off at the server or with "
            "paced.targets.endpoint.parameters"
        )
    return None if choice.finish_reason == "stop" else f"not ended by the model (finish_reason: {choice.finish_reason})"
