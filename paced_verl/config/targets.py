"""``paced.targets``: where teacher responses come from."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from paced_verl.config.base import Block, Number, Price, Share, Temperature, Whole


class EndpointConfig(Block):
    """An OpenAI-compatible endpoint that writes teacher responses for ``paced-verl targets``. Runs do not read it."""

    url: Annotated[str, Field(pattern=r"^https?://[^\s/?#:]+\S*$")]
    """The base URL, up to and with ``/v1``."""
    model: Annotated[str, Field(min_length=1)]
    api_key_env: Annotated[str, Field(min_length=1)] = "OPENAI_API_KEY"
    """Name of the environment variable whose value is sent as the key; it may be unset for a server without keys."""
    concurrency: Annotated[Whole, Field(ge=1, le=10_000)] = 32
    """Requests in flight."""
    retries: Annotated[Whole, Field(ge=0, le=100)] = 5
    """How often a request is sent again after 408, 409, 429, 5xx, a timeout or a lost connection."""
    timeout: Annotated[Number, Field(gt=0, le=86_400)] = 600.0
    """Seconds to wait for an answer."""
    parameters: dict[str, Any] = Field(default_factory=dict)
    """More fields of the request, as the server names them; null leaves one of ours out (``max_tokens``)."""
    input_price: Price = 0.0
    """Per million tokens, in any currency."""
    output_price: Price = 0.0


class TargetsConfig(Block):
    """Where teacher responses y_T come from."""

    column: Annotated[str, Field(min_length=1)] | None = None
    """Take them from this field of the data (a dotted path such as ``extra_info.response``)."""
    file: Annotated[str, Field(min_length=1)] | None = None
    """Take them from, and add generated ones to, this parquet file (made by ``paced-verl targets``, or by a run)."""
    keep: Literal["all", "correct"] = "all"
    """``correct`` keeps a generated response only if the reward says so."""
    attempts: Annotated[Whole, Field(ge=1, le=1000)] = 1
    """How often to ask for a response that is kept; then the prompt is skipped and counted."""
    temperature: Temperature = 1.0
    top_p: Share = 1.0
    endpoint: EndpointConfig | None = None
    """Have ``paced-verl targets`` ask this server instead of loading the teacher."""
