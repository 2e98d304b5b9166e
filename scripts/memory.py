"""The tables of memory in docs/cluster.md, to redo with your own models, cards and lengths, which stand at the top.

    python scripts/memory.py

Bytes a GPU, by the formulas of that page: arithmetic, and nothing of it was measured on a GPU.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

GIB = 2**30
TOKENS = 17_408
"""A micro-batch on one GPU."""
CARDS = {"80 GB": 79, "141 GB": 139}
"""GiB that CUDA reports."""


class Model(NamedTuple):
    """The sizes of a model, as its configuration has them."""

    layers: int
    hidden: int
    query_heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool

    @property
    def layer(self) -> int:
        """Parameters of a layer but for its norms, which are less than 1/10,000."""
        attention = 2 * self.hidden * self.head_dim * (self.query_heads + self.kv_heads)
        return attention + 3 * self.hidden * self.intermediate

    @property
    def head(self) -> int:
        """Parameters of the output layer."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        return self.layers * self.layer + self.head * (2 - self.tied)

    @property
    def cache(self) -> int:
        """Bytes of the KV cache a token, in bfloat16."""
        return 4 * self.layers * self.kv_heads * self.head_dim


MODELS = {
    "Qwen3-1.7B": Model(28, 2048, 16, 8, 128, 6144, 151_936, tied=True),
    "Qwen3-8B": Model(36, 4096, 32, 8, 128, 12288, 151_936, tied=False),
    "Llama-3.1-8B": Model(32, 4096, 32, 8, 128, 14336, 128_256, tied=False),
    "Llama-3.3-70B": Model(80, 8192, 64, 8, 128, 28672, 128_256, tied=False),
}
STUDENTS = {"Qwen3-1.7B": (4, 8), "Qwen3-8B": (4, 8, 16), "Llama-3.1-8B": (8,)}
"""Trainer GPUs of each."""
TEACHERS = {"Qwen3-8B": (1, 2), "Llama-3.3-70B": (2, 4, 8)}
"""Tensor-parallel sizes of each."""


def model(name: str) -> tuple[Any, ...]:
    """A row of the first table: weights, training, checkpoint; cache, logits and hidden states a token."""
    it = MODELS[name]
    weights, training, checkpoint = (times * it.parameters / GIB for times in (2, 16, 12))
    tokens = (f"{size / 1024:.0f} KiB" for size in (it.cache, 2 * it.vocabulary, 2 * it.hidden))
    return name, f"{it.parameters / 1e9:.2f} G", f"{weights:.1f}", f"{training:.0f}", f"{checkpoint:.0f}", *tokens


def student(name: str, gpus: int, tokens: int = TOKENS) -> tuple[Any, ...]:
    """A row of the second table: a student while it updates."""
    it = MODELS[name]
    parts = (
        16 * it.parameters / gpus,
        8 * it.head + 4 * it.layer,
        2 * tokens * ((it.layers + 1) * it.hidden + 4 * it.intermediate + 12 * it.hidden),
        4 * tokens * it.vocabulary,
    )
    with_verls_loss = sum(parts) + 8 * tokens * it.vocabulary
    numbers = (*parts, sum(parts), with_verls_loss, 12 * it.parameters / gpus)
    return name, gpus, *(f"{number / GIB:.1f}" for number in numbers)


def teacher(
    name: str, parallel: int, share: float = 0.8, batched: int = 8192, overhead: int = 3 * GIB, row: int = 19_456
) -> tuple[Any, ...]:
    """A row of the third table: a teacher's server, and how many rows' caches fit at once on each card."""
    it = MODELS[name]
    weights, scoring = 2 * it.parameters / parallel, 6 * it.vocabulary * batched
    cells = []
    for card in CARDS.values():
        rows = (share * card * GIB - weights - overhead) // (it.cache / parallel * row)
        cells.append(f"{rows:.0f}" if rows >= 1 and scoring < (1 - share) * card * GIB else "no")
    return name, parallel, f"{weights / GIB:.1f}", f"{scoring / GIB:.1f}", *cells


def tables() -> Iterator[list[str]]:
    """The lines of each table."""
    yield [line(model(name)) for name in MODELS]
    yield [line(student(name, gpus)) for name, sizings in STUDENTS.items() for gpus in sizings]
    yield [line(teacher(name, parallel)) for name, sizings in TEACHERS.items() for parallel in sizings]


def line(cells: tuple[Any, ...]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    print("\n\n".join("\n".join(lines) for lines in tables()))
