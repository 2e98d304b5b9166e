"""docs/cluster.md: its tables come from its own snippet, its models are real, and its keys exist."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from paced_verl.launch.hydra import compose

PAGE = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text()


@pytest.fixture(scope="module")
def snippet() -> dict[str, Any]:
    names: dict[str, Any] = {}
    (source,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(source, names)
    return names | {"printed": printed.getvalue()}


def test_the_tables_are_what_the_snippet_prints(snippet: dict[str, Any]) -> None:
    rows = [line for line in snippet["printed"].splitlines() if line]
    assert len(rows) == 15
    assert [row for row in rows if row not in PAGE.splitlines()] == []


@pytest.mark.parametrize("name", ["Qwen3-1.7B", "Qwen3-8B", "Llama-3.1-8B", "Llama-3.3-70B"])
def test_parameters_are_those_of_transformers(snippet: dict[str, Any], name: str) -> None:
    layers, hidden, heads, kv_heads, head_dim, intermediate, vocabulary, tied = snippet["MODELS"][name]
    config, model = (Qwen3Config, Qwen3ForCausalLM) if name.startswith("Qwen") else (LlamaConfig, LlamaForCausalLM)
    with torch.device("meta"):
        built = model(
            config(
                num_hidden_layers=layers,
                hidden_size=hidden,
                num_attention_heads=heads,
                num_key_value_heads=kv_heads,
                head_dim=head_dim,
                intermediate_size=intermediate,
                vocab_size=vocabulary,
                tie_word_embeddings=tied,
            )
        )
    assert snippet["sizes"](name)[0] == pytest.approx(sum(p.numel() for p in built.parameters()), rel=1e-4)


def exists(config: DictConfig, key: str) -> bool:
    node: Any = config
    for name in key.split("."):
        if not isinstance(node, DictConfig) or name not in node.keys():  # noqa: SIM118 (`in` hides keys that are null)
            return False
        node = node._get_node(name)
    return True


def test_every_key_exists() -> None:
    config = compose(["+paced=two_stage"])
    roots = "actor_rollout_ref|data|distillation|paced|ray_kwargs|reward|trainer|transfer_queue"
    keys = set(re.findall(rf"(?<![\w+./])(?:{roots})(?:\.[a-z_0-9]+)+(?![\w.(])", PAGE)) - {"ray_kwargs.ray_init"}
    assert len(keys) > 40
    assert sorted(key for key in keys if not exists(config, key)) == []
