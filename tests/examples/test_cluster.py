"""docs/cluster.md: its tables come from scripts/memory.py, its models are real, and its keys exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from paced_verl.launch.hydra import compose
from scripts import memory

PAGE = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text()


def test_the_tables_are_what_the_script_prints() -> None:
    rows = [row for table in memory.tables() for row in table]
    assert len(rows) == 15
    assert [row for row in rows if row not in PAGE.splitlines()] == []


@pytest.mark.parametrize("name", memory.MODELS)
def test_parameters_are_those_of_transformers(name: str) -> None:
    sizes = memory.MODELS[name]
    config, model = (Qwen3Config, Qwen3ForCausalLM) if name.startswith("Qwen") else (LlamaConfig, LlamaForCausalLM)
    with torch.device("meta"):
        built = model(
            config(
                num_hidden_layers=sizes.layers,
                hidden_size=sizes.hidden,
                num_attention_heads=sizes.query_heads,
                num_key_value_heads=sizes.kv_heads,
                head_dim=sizes.head_dim,
                intermediate_size=sizes.intermediate,
                vocab_size=sizes.vocabulary,
                tie_word_embeddings=sizes.tied,
            )
        )
    assert sizes.parameters == pytest.approx(sum(p.numel() for p in built.parameters()), rel=1e-4)


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
