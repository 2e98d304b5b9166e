"""The gradient of one problem's divergence, as a stage trains it: plain models, no Ray, no verl."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from paced_verl.divergence import TokenDivergence, full_divergence, token_divergence
from paced_verl.divergence.selection import get_token_weight
from paced_verl.errors import PacedError, nearest
from paced_verl.teacher.positions import in_vocabulary, top_k


@dataclass(frozen=True)
class Objective:
    """What a stage of a run makes of a response.

    Attributes:
        divergence: A registered name.
        parameters: Of that divergence.
        topk: Tokens of the teacher's distribution, or ``full``.
        says_tail: Whether the teacher says the probability of all others together (``backend: reference``).
        token_mean: Whether a response counts by the mean over its tokens (``seq-mean-token-mean``), or by the sum.
        temperature: The student's logits are divided by it.
        clamp: ``loss_max_clamp``.
        select: A registered choice of tokens, which keeps the share ``keep``.
    """

    divergence: str
    parameters: dict[str, Any] = field(default_factory=dict)
    topk: int | str = "full"
    says_tail: bool = True
    token_mean: bool = False
    temperature: float = 1.0
    clamp: float | None = None
    select: str | None = None
    keep: float = 1.0


@dataclass(frozen=True)
class Problem:
    """A problem as token ids.

    Attributes:
        prompt: Its position in the training set.
        student_prompt, teacher_prompt: What either reads before a response.
        responses: What is trained on; empty: the student writes it.
    """

    prompt: int
    student_prompt: tuple[int, ...]
    teacher_prompt: tuple[int, ...]
    responses: tuple[tuple[int, ...], ...] = ()


def parameters_of(model: Any, module: str | None) -> dict[str, torch.nn.Parameter]:
    """The parameters that a name stands for, each once, in the model's order.

    Args:
        model: Of transformers.
        module: The name of a module or parameter, or a regular expression that whole names of parameters match;
            ``None``: the output layer.

    Returns:
        By name; one that two modules share by all its names ("a = b"). Its gradient is of all its uses, as in training.

    Raises:
        PacedError: It stands for none.
    """
    names = dict(model.named_parameters(remove_duplicate=False))
    module = module or _output_layer(model)
    pattern = _pattern(module)
    found = {
        id(parameter)
        for name, parameter in names.items()
        if name == module or name.startswith(f"{module}.") or pattern.fullmatch(name)
    }
    if not found:
        known = [*(name for name, _ in model.named_modules() if name), *names]
        raise PacedError(
            f"--module {module}: the model has no module or parameter of this name, and no parameter's name matches it "
            f"as a regular expression. {nearest(module, known)}".rstrip()
        )
    uses: dict[int, list[str]] = {}
    for name, parameter in names.items():
        uses.setdefault(id(parameter), []).append(name)
    return {" = ".join(uses[key]): names[uses[key][0]] for key in uses if key in found}


def _output_layer(model: Any) -> str:
    output = model.get_output_embeddings()
    return next(name for name, module in model.named_modules() if module is output)


def _pattern(module: str) -> re.Pattern[str]:
    try:
        return re.compile(module)
    except re.error:
        return re.compile(re.escape(module))


class Teacher:
    """A teacher's model, which says what the objective needs of it.

    Args:
        model: Of transformers; for ``topk: full`` its output layer is taken off and kept apart.
        topk: As of :class:`Objective`.
    """

    def __init__(self, model: Any, topk: int | str):
        self.model, self.head = model, None
        if topk == "full":
            output = model.get_output_embeddings()
            self.head = output.weight.detach()
            output.forward = lambda hidden: hidden

    @torch.no_grad()
    def __call__(self, prompt: Sequence[int], response: Sequence[int]) -> torch.Tensor:
        """(tokens, V_t) logits of each token of the response, or (tokens, H) what the output layer would read."""
        return predictions(self.model, prompt, response)


def predictions(model: Any, prompt: Sequence[int], response: Sequence[int]) -> torch.Tensor:
    """(tokens, width) what the output layer gives at the positions that predict the response."""
    ids = torch.tensor([[*prompt, *response]], device=model.device)
    output = model(input_ids=ids, use_cache=False, logits_to_keep=len(response) + 1)
    logits: torch.Tensor = output.logits[0, -len(response) - 1 : -1]
    return logits


def response_loss(
    objective: Objective, logits: torch.Tensor, said: torch.Tensor, head: torch.Tensor | None
) -> tuple[torch.Tensor, TokenDivergence]:
    """The scalar that a response adds to the loss at weight 1, and its tokens' divergences.

    Args:
        objective: The stage's.
        logits: (tokens, V) of the student.
        said: What :class:`Teacher` gives.
        head: Its output layer, (V_t, H), for ``topk: full``.
    """
    logits = logits / objective.temperature
    if head is not None:
        result = full_divergence(logits, said, head, objective.divergence, **objective.parameters)
    else:
        result = _of_top_k(objective, logits, said)
    values = result.value if objective.clamp is None else result.value.clamp(max=objective.clamp)
    values = values * _token_factor(objective, result)
    return (values.mean() if objective.token_mean else values.sum()), result


def _of_top_k(objective: Objective, logits: torch.Tensor, said: torch.Tensor) -> TokenDivergence:
    top = top_k(said, int(objective.topk))
    ids, log_probs = in_vocabulary(top["teacher_ids"], top["teacher_logprobs"], logits.shape[1])
    tail = top["teacher_tail"] if objective.says_tail else None
    return token_divergence(logits, ids, log_probs, objective.divergence, teacher_tail=tail, **objective.parameters)


@torch.no_grad()
def _token_factor(objective: Objective, result: TokenDivergence) -> torch.Tensor:
    """(tokens,) what the choice of tokens multiplies them by."""
    if objective.select is None:
        return torch.ones_like(result.value)
    known = {
        "student_entropy": result.student_entropy,
        "forward_kl": result.forward_kl,
        "reverse_kl": result.reverse_kl,
        "tail_mass": result.teacher_tail,
        "student_tail_mass": result.student_tail,
    }
    rows = {name: value.unsqueeze(0) for name, value in known.items()}
    mask = torch.ones_like(rows["forward_kl"], dtype=torch.bool)
    return get_token_weight(objective.select)(rows, mask, objective.keep).squeeze(0)


def problem_gradient(
    student: Any,
    teacher: Teacher,
    parameters: Sequence[torch.nn.Parameter],
    problem: Problem,
    objective: Objective,
) -> tuple[list[torch.Tensor], float]:
    """The gradient of the mean loss over a problem's responses, and its mean divergence a token, in nats.

    Args:
        student: A model of transformers.
        teacher: Who compares.
        parameters: Of the student; the only ones that require a gradient, if time matters.
        problem: With responses.
        objective: The stage's.

    Returns:
        Gradients in the shapes of the parameters, in their dtype; zeros for one that the loss does not reach.
    """
    student.zero_grad(set_to_none=True)
    divergence, tokens = 0.0, 0
    for response in problem.responses:
        said = teacher(problem.teacher_prompt, response)
        logits = predictions(student, problem.student_prompt, response)
        loss, result = response_loss(objective, logits, said, teacher.head)
        (loss / len(problem.responses)).backward()
        divergence += float(result.value.detach().sum())
        tokens += len(response)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    return gradients, divergence / tokens
