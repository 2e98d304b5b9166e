"""PACED distillation (arXiv 2603.11178) in one file of plain torch, to be read from top to bottom.

    python examples/paced_minimal.py [--steps N] [--seed S] [--weight paced|uniform|hard_filter]

A student learns from a teacher to spell words backwards: `abbc____>` is answered by `cbba.`. Both are causal
transformers trained in this file on the same task, the teacher well, the student badly, so that the student's pass
rates on the problems spread over 0 … 1. What then happens is the method:

1. Pass rate.  p_i = share of K = 8 student responses to problem i that are correct, sampled at temperature 1.
2. Weight.     w̃_i = w(p_i) / mean over all problems of w(p),  w(p) = p^α (1−p)^β,  α = β = 1. Problems that the
               student always or never solves weigh 0, stay in the data and count in the mean.
3. Stage 1.    Forward KL(T‖S) at every token of a response of the teacher, one for each problem.
4. Refresh.    Pass rates and weights are estimated again.
5. Stage 2.    Reverse KL(S‖T) at every token of a fresh response of the student.

The loss of a batch of N problems, drawn uniformly, is (1/N) Σ_i w̃_i (1/T_i) Σ_t KL_t, over the full vocabulary, and
goes through the student's logits only: sampled responses are data. The teacher is frozen. Its second input in the
paper, the solution of an expert, is left out: this teacher needs none.

The baselines are the same code with another weight: `uniform` (w = 1) and `hard_filter` (w = 1 where .2 ≤ p ≤ .8).

What comes out with the defaults, held-out accuracy before → after for seeds 0, 1, 2:

    paced        .760 → .934    .791 → .898    .855 → .965
    uniform      .760 → .955    .791 → .914    .855 → .973
    hard_filter  .760 → .891    .791 → .887    .855 → .912

Here PACED does better than the hard filter and a little worse than no weights: the file shows how the method works, not
what it is worth. Likely reasons: one rule solves all problems, so that those never solved teach it as well as others,
the teacher is always right, and the student has nothing to forget.

The functions of the first section are also what the tests of the plugin `paced-verl` compare it with. They follow the
formulas in the most direct way and share no code with the plugin.
"""

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# ---------------------------------------------------------------------------------------------------------------------
# The maths. Shapes: B responses, T tokens, V vocabulary; KLs are in nats.


def weights(successes: Tensor, samples: Tensor, alpha: float = 1.0, beta: float = 1.0) -> Tensor:
    """w(p) = p^α (1−p)^β at the pass rates p = k/n, not normalised. α = β = 0 is uniform."""
    p = successes / samples
    return p**alpha * (1 - p) ** beta


def hard_filter(successes: Tensor, samples: Tensor, low: float = 0.2, high: float = 0.8) -> Tensor:
    """w(p) = 1 for low ≤ p ≤ high, else 0."""
    p = successes / samples
    return ((low <= p) & (p <= high)).to(p.dtype)


def normalise(w: Tensor) -> Tensor:
    """w̃ = w / mean(w), over all problems and zeros included: on average a problem weighs 1, as without weights."""
    if not w.any():
        raise ValueError("every problem has weight 0: the student solves each of them always or never")
    return w / w.mean()


def posterior_weight(
    k: float, n: float, a: float = 1.0, b: float = 1.0, alpha: float = 1.0, beta: float = 1.0
) -> float:
    """E[w(p) | k of n correct] if p ~ Beta(a, b) beforehand: ∫ w f dp / ∫ f dp with f = p^(a+k−1) (1−p)^(b+n−k−1).

    Beyond the paper, where k = 0 weighs 0; not used below. The integrals are sums over a grid of x with p = 1/(1+e^−x),
    dp = p (1−p) dx, which takes away the poles that f has at 0 and 1 when its exponents are negative.
    """
    x = torch.linspace(-700, 700, 140_001, dtype=torch.float64)
    p, q = torch.sigmoid(x), torch.sigmoid(-x)
    a, b = a + k, b + n - k
    return float((p ** (a + alpha) * q ** (b + beta)).sum() / (p**a * q**b).sum())


def forward_kl(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """KL(T‖S) = Σ_v T_v (log T_v − log S_v): (…, V) → (…)."""
    log_t, log_s = teacher_logits.log_softmax(-1), student_logits.log_softmax(-1)
    return (log_t.exp() * (log_t - log_s)).sum(-1)


def reverse_kl(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """KL(S‖T)."""
    return forward_kl(student_logits, teacher_logits)


def topk_tail_kl(teacher_logits: Tensor, student_logits: Tensor, k: int, direction: str = "forward") -> Tensor:
    """A KL over k+1 categories: the k most probable tokens of the teacher, and all other tokens as one, the tail.

    What is left of the full KL where only k log-probabilities travel from the teacher to the student; not used below.
    With k = V there is no tail, and it is the full KL.
    """
    top = teacher_logits.topk(k, dim=-1).indices
    in_tail = torch.ones_like(teacher_logits, dtype=torch.bool).scatter(-1, top, False)

    def categories(logits: Tensor) -> Tensor:
        probs = logits.softmax(-1)
        tail = (probs * in_tail).sum(-1, keepdim=True)
        return torch.cat([probs.gather(-1, top), tail], -1) if k < logits.shape[-1] else probs

    t, s = categories(teacher_logits), categories(student_logits)
    if direction == "reverse":
        t, s = s, t
    return (t * (t.log() - s.log())).sum(-1)


def paced_loss(token_kls: Tensor, mask: Tensor, weights: Tensor, mode: str = "seq-mean-token-mean") -> Tensor:
    """Weigh the token KLs (B, T) of each response by its w̃ (B,) and average them.

    mask (B, T) is 1 on the tokens of a response. The weights multiply only: no mode divides by their sum in the batch,
    which would cancel them.
    """
    weighted = weights[:, None] * token_kls * mask
    if mode == "seq-mean-token-mean":  # (1/N) Σ_i w̃_i (1/T_i) Σ_t KL_t
        return (weighted.sum(1) / mask.sum(1)).mean()
    if mode == "seq-mean-token-sum":  # (1/N) Σ_i w̃_i Σ_t KL_t
        return weighted.sum(1).mean()
    if mode == "token-mean":  # (1/Σ_i T_i) Σ_i w̃_i Σ_t KL_t
        return weighted.sum() / mask.sum()
    raise ValueError(f"unknown mode {mode!r}")


# ---------------------------------------------------------------------------------------------------------------------
# The task: words over a small alphabet, to be spelled backwards. Prompts have one width, so that they stack.

LETTERS, SHORTEST, LONGEST = 8, 3, 8
BLANK, ASK, END = LETTERS, LETTERS + 1, LETTERS + 2  # "_", ">" and "."
VOCAB = LETTERS + 3
PROMPT, RESPONSE = LONGEST + 1, LONGEST + 1


def make_problems(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Different random words as prompts (count, PROMPT), and their solutions (count, RESPONSE), blank after the end."""
    words: dict[tuple[int, ...], None] = {}  # a set that keeps its order
    while len(words) < count:
        length = int(torch.randint(SHORTEST, LONGEST + 1, (), generator=generator))
        words[tuple(torch.randint(LETTERS, (length,), generator=generator).tolist())] = None
    prompts, solutions = torch.full((count, PROMPT), BLANK), torch.full((count, RESPONSE), BLANK)
    for prompt, solution, word in zip(prompts, solutions, words, strict=True):
        prompt[: len(word)], prompt[-1] = torch.tensor(word), ASK
        solution[: len(word)], solution[len(word)] = torch.tensor(word[::-1]), END
    return prompts, solutions


def response_mask(responses: Tensor) -> Tensor:
    """1 on every token up to the first END, that one included."""
    ends = (responses == END).long()
    return (ends.cumsum(1) - ends == 0).float()


def is_correct(responses: Tensor, solutions: Tensor) -> Tensor:
    """The verifier: whether a response is the solution; what follows its END does not matter."""
    return ((responses == solutions) | (response_mask(responses) == 0)).all(1)


# ---------------------------------------------------------------------------------------------------------------------
# The models.


class Model(nn.Module):
    """A causal transformer: tokens (B, L) → logits of the next token (B, L, V)."""

    def __init__(self, width: int, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(VOCAB, width), nn.Embedding(PROMPT + RESPONSE, width)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, VOCAB))

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        causal = nn.Transformer.generate_square_subsequent_mask(length)
        x = self.token(tokens) + self.position.weight[:length]
        return self.head(self.blocks(x, mask=causal, is_causal=True))


def response_logits(model: Model, prompts: Tensor, responses: Tensor) -> Tensor:
    """The logits (B, RESPONSE, V) that predict each token of the responses."""
    return model(torch.cat([prompts, responses], 1)[:, :-1])[:, PROMPT - 1 :]


@torch.no_grad()
def generate(model: Model, prompts: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Responses (B, RESPONSE): samples at temperature 1, or without a generator the most probable token each time."""
    tokens = prompts
    for _ in range(RESPONSE):
        logits = model(tokens)[:, -1]
        if generator is None:
            token = logits.argmax(-1, keepdim=True)
        else:
            token = torch.multinomial(logits.softmax(-1), 1, generator=generator)
        tokens = torch.cat([tokens, token], 1)
    return tokens[:, PROMPT:]


def pretrain(model: Model, prompts: Tensor, solutions: Tensor, steps: int, generator: torch.Generator) -> None:
    """Cross-entropy on solutions: how the teacher becomes good, and the student as good as it is before PACED."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        rows = torch.randint(len(prompts), (128,), generator=generator)
        solution = solutions[rows]
        targets = solution.where(response_mask(solution) == 1, -100)  # the index that cross_entropy ignores
        loss = F.cross_entropy(response_logits(model, prompts[rows], solution).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


# ---------------------------------------------------------------------------------------------------------------------
# PACED.

SAMPLES = 8  # K
BATCH = 32


def count_successes(student: Model, prompts: Tensor, solutions: Tensor, generator: torch.Generator) -> Tensor:
    """How many of SAMPLES responses to each problem are correct."""
    responses = generate(student, prompts.repeat_interleave(SAMPLES, 0), generator)
    return is_correct(responses, solutions.repeat_interleave(SAMPLES, 0)).view(-1, SAMPLES).sum(1).double()


def problem_weights(kind: str, successes: Tensor) -> Tensor:
    """w̃ of every problem."""
    samples = torch.full_like(successes, SAMPLES)
    if kind == "hard_filter":
        return normalise(hard_filter(successes, samples))
    exponent = {"paced": 1.0, "uniform": 0.0}[kind]
    return normalise(weights(successes, samples, exponent, exponent))


def run(
    steps: int = 200,
    seed: int = 0,
    weight: str = "paced",
    problems: int = 256,
    teacher_steps: int = 300,
    student_steps: int = 90,
) -> dict[str, list]:
    """Pretrain both models, distil in two stages of half the steps each, print and return what was measured."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    prompts, solutions = make_problems(6000, generator)
    train, held_out, pretraining = slice(problems), slice(problems, 3 * problems), slice(3 * problems, None)

    teacher, student = Model(width=64), Model(width=32)
    pretrain(teacher, prompts[pretraining], solutions[pretraining], teacher_steps, generator)
    pretrain(student, prompts[pretraining], solutions[pretraining], student_steps, generator)
    teacher.requires_grad_(False)

    def accuracy(model: Model) -> float:
        return float(is_correct(generate(model, prompts[held_out]), solutions[held_out]).double().mean())

    prompts_train, solutions_train = prompts[train], solutions[train]
    teacher_responses = generate(teacher, prompts_train, generator)
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-4)
    measured: dict[str, list] = {"accuracy": [], "pass_rates": [], "loss": []}

    def measure(when: str) -> Tensor:
        successes = count_successes(student, prompts_train, solutions_train, generator)
        measured["accuracy"].append(accuracy(student))
        measured["pass_rates"].append(successes / SAMPLES)
        histogram = " ".join(f"{n:3d}" for n in successes.long().bincount(minlength=SAMPLES + 1).tolist())
        print(f"{when:<8} {measured['accuracy'][-1]:17.3f}   {float(successes.mean() / SAMPLES):14.3f}   {histogram}")
        return successes

    print(f"weight={weight} seed={seed} steps={steps}; held-out accuracy of the teacher: {accuracy(teacher):.3f}\n")
    print(f"         held-out accuracy   mean pass rate   problems solved 0 … {SAMPLES} times of {SAMPLES}")
    successes = measure("before")
    for stage in (1, 2):
        w = problem_weights(weight, successes)
        for _ in range(steps // 2):
            rows = torch.randint(len(w), (BATCH,), generator=generator)
            if stage == 1:
                responses, kl = teacher_responses[rows], forward_kl
            else:
                responses, kl = generate(student, prompts_train[rows], generator), reverse_kl
            with torch.no_grad():
                teacher_logits = response_logits(teacher, prompts_train[rows], responses)
            student_logits = response_logits(student, prompts_train[rows], responses)
            loss = paced_loss(kl(teacher_logits, student_logits), response_mask(responses), w[rows].float())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            measured["loss"].append(loss.item())
        successes = measure("between" if stage == 1 else "after")
    return measured


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, help="distillation steps, half of them in each stage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weight", choices=["paced", "uniform", "hard_filter"], default="paced")
    torch.set_num_threads(1)  # at this size threads cost more than they give
    run(**vars(parser.parse_args()))
