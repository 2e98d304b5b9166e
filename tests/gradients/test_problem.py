"""Gradients against autograd on formulas written out here, with real models of transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from paced_verl.divergence.selection import register_token_weight
from paced_verl.errors import PacedError
from paced_verl.gradients.problem import (
    Objective,
    Problem,
    Teacher,
    parameters_of,
    problem_gradient,
    response_loss,
)
from paced_verl.gradients.worker import Recipe, Worker, sizes_of
from paced_verl.training.loss import _DIAGNOSTICS

VOCAB = 48
ROUNDING = {"rtol": 1e-5, "atol": 1e-6}  # Qwen3 normalises in float32, whatever its dtype
PROBLEM = Problem(5, (3, 4, 5), (6, 7, 8, 9), ((12, 13, 14), (15, 16, 17, 18, 1)))


def make(folder: Path, seed: int, tied: bool, vocabulary: int = VOCAB) -> Path:
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=vocabulary, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=64, tie_word_embeddings=tied, initializer_range=0.4,
        eos_token_id=1, pad_token_id=0, bos_token_id=None,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config)
    # What a run's servers do not read, and neither may sampling here.
    model.generation_config = GenerationConfig(
        eos_token_id=[1, 2], pad_token_id=0, do_sample=True, top_k=1, temperature=0.01
    )
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make(folder / "student", 0, tied=False)
    make(folder / "tied", 1, tied=True)
    make(folder / "teacher", 2, tied=False)
    make(folder / "wide", 3, tied=False, vocabulary=VOCAB + 16)
    return folder


def model(path: Path) -> Qwen3ForCausalLM:
    return Qwen3ForCausalLM.from_pretrained(path).double().eval()


def log_probs(of: Qwen3ForCausalLM, prompt: tuple[int, ...], response: tuple[int, ...]) -> torch.Tensor:
    """(tokens, V) of the distributions that each token of the response is drawn from: no shortcut, one at a time."""
    rows = []
    for place in range(len(response)):
        logits = of(input_ids=torch.tensor([[*prompt, *response[:place]]])).logits[0, -1]
        rows.append(logits.log_softmax(-1))
    return torch.stack(rows)


def plain_gradient(student, teacher, names: list[str], divergence: str, mean: bool = False, k: int = VOCAB) -> dict:
    """Of the loss as the paper writes it, by autograd through the whole model."""
    total = torch.zeros((), dtype=torch.float64)
    for response in PROBLEM.responses:
        s = log_probs(student, PROBLEM.student_prompt, response)
        with torch.no_grad():
            t = log_probs(teacher, PROBLEM.teacher_prompt, response)[:, :VOCAB].log_softmax(-1)
        if k < VOCAB:
            top = t.topk(k).indices
            s, t = (
                torch.cat([x.gather(1, top), torch.log1p(-x.gather(1, top).exp().sum(1, keepdim=True))], 1)
                for x in (s, t)
            )
        p, q = (t, s) if divergence == "forward_kl" else (s, t)
        values = (p.exp() * (p - q)).sum(-1)
        total = total + (values.mean() if mean else values.sum())
    parameters = dict(student.named_parameters(remove_duplicate=False))
    grads = torch.autograd.grad(total / len(PROBLEM.responses), [parameters[name] for name in names])
    return dict(zip(names, grads, strict=True))


@pytest.mark.parametrize("who", ["student", "tied"])
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl"])
@pytest.mark.parametrize("mean", [False, True])
def test_over_the_whole_vocabulary_it_is_autograds(folder: Path, who: str, divergence: str, mean: bool) -> None:
    student, teacher = model(folder / who), model(folder / "teacher")
    expected = plain_gradient(student, teacher, ["lm_head.weight"], divergence, mean)["lm_head.weight"]
    parameters = list(parameters_of(student, None).values())
    objective = Objective(divergence, token_mean=mean)
    (found,), value = problem_gradient(student, Teacher(teacher, "full"), parameters, PROBLEM, objective)
    torch.testing.assert_close(found, expected, **ROUNDING)
    assert value > 0


@pytest.mark.parametrize("says_tail", [True, False])
def test_over_the_teachers_top_k_and_tail_it_is_autograds_of_any_module(folder: Path, says_tail: bool) -> None:
    student, teacher = model(folder / "student"), model(folder / "teacher")
    names = [name for name, _ in student.named_parameters() if name.startswith("model.layers.1.mlp.")]
    expected = plain_gradient(student, teacher, names, "reverse_kl", k=6)
    parameters = parameters_of(student, "model.layers.1.mlp")
    assert list(parameters) == names
    objective = Objective("reverse_kl", topk=6, says_tail=says_tail)
    found, _ = problem_gradient(student, Teacher(teacher, 6), list(parameters.values()), PROBLEM, objective)
    for name, gradient in zip(parameters, found, strict=True):
        torch.testing.assert_close(gradient, expected[name], **ROUNDING)


def test_a_teacher_with_more_ids_gives_them_no_probability(folder: Path) -> None:
    student, teacher = model(folder / "student"), model(folder / "wide")
    expected = plain_gradient(student, teacher, ["lm_head.weight"], "forward_kl")["lm_head.weight"]
    parameters = list(parameters_of(student, None).values())
    (found,), _ = problem_gradient(student, Teacher(teacher, "full"), parameters, PROBLEM, Objective("forward_kl"))
    torch.testing.assert_close(found, expected, **ROUNDING)


@pytest.mark.parametrize(("says_tail", "tail"), [(True, 9 * np.exp(-40)), (False, 2.0**-20)])
def test_a_tail_that_the_teacher_says_is_taken_at_its_word(says_tail: bool, tail: float) -> None:
    """Servers do not say it: there it is at least what 1 − Σ p can resolve."""
    said = torch.zeros(2, 10)
    said[:, 3] = 40
    objective = Objective("reverse_kl", topk=1, says_tail=says_tail)
    _, result = response_loss(objective, torch.randn(2, 10), said, None)
    assert result.teacher_tail.tolist() == pytest.approx([tail] * 2, rel=1e-4)


def test_a_top_k_may_hold_ids_that_the_student_does_not_have(folder: Path) -> None:
    student, teacher = model(folder / "student"), model(folder / "wide")
    said = Teacher(teacher, 32)(PROBLEM.teacher_prompt, PROBLEM.responses[0])
    assert (said.topk(32).indices >= VOCAB).any()
    parameters = list(parameters_of(student, None).values())
    (found,), _ = problem_gradient(student, Teacher(teacher, 32), parameters, PROBLEM, Objective("forward_kl", topk=32))
    assert found.isfinite().all()
    assert found.any()


def test_divergence_parameters_clamp_temperature_and_choice_of_tokens_count(folder: Path) -> None:
    """Each moves the gradient; the clamp at 0 leaves none, and half of a response's tokens are what is kept."""
    student, teacher = model(folder / "student"), Teacher(model(folder / "teacher"), "full")
    parameters = list(parameters_of(student, None).values())

    def of(**settings: object) -> torch.Tensor:
        objective = Objective(**({"divergence": "jsd"} | settings))  # type: ignore[arg-type]
        return problem_gradient(student, teacher, parameters, PROBLEM, objective)[0][0].clone()

    plain = of()
    torch.testing.assert_close(of(parameters={"beta": 0.5}), plain)
    assert not torch.allclose(of(parameters={"beta": 0.2}), plain)
    assert not torch.allclose(of(temperature=0.7), plain)
    assert not of(clamp=0.0).any()
    assert not torch.allclose(of(select="tip", keep=0.5), plain)
    torch.testing.assert_close(of(select="tip", keep=1.0), plain)


def test_a_choice_of_tokens_is_told_what_the_run_tells_it(folder: Path) -> None:
    """By the names that the loss uses, (1, tokens) each."""
    told: list[dict[str, torch.Tensor]] = []

    @register_token_weight("listens")
    def listens(known: dict[str, torch.Tensor], mask: torch.Tensor, keep: float) -> torch.Tensor:
        assert keep == 0.25
        told.append(known)
        return mask.float()

    student, teacher = model(folder / "student"), model(folder / "teacher")
    parameters = list(parameters_of(student, None).values())
    objective = Objective("forward_kl", topk=6, select="listens", keep=0.25)
    problem_gradient(student, Teacher(teacher, 6), parameters, PROBLEM, objective)
    response = PROBLEM.responses[0]
    s, t = log_probs(student, (3, 4, 5), response), log_probs(teacher, (6, 7, 8, 9), response)
    top = t.topk(6).indices
    assert told[0].keys() == set(_DIAGNOSTICS)
    for name, of in (("tail_mass", t), ("student_tail_mass", s)):
        assert told[0][name][0].tolist() == pytest.approx((1 - of.gather(1, top).exp().sum(1)).tolist(), abs=1e-6)
    assert (told[0]["forward_kl"] != told[0]["reverse_kl"]).all()


def test_gradients_do_not_add_up_over_problems(folder: Path) -> None:
    student, teacher = model(folder / "student"), Teacher(model(folder / "teacher"), "full")
    parameters = list(parameters_of(student, None).values())
    first = problem_gradient(student, teacher, parameters, PROBLEM, Objective("forward_kl"))[0][0].clone()
    again = problem_gradient(student, teacher, parameters, PROBLEM, Objective("forward_kl"))[0][0]
    torch.testing.assert_close(first, again)


def test_names_are_modules_parameters_or_expressions(folder: Path) -> None:
    student, tied = model(folder / "student"), model(folder / "tied")
    assert list(parameters_of(student, None)) == ["lm_head.weight"]
    assert list(parameters_of(tied, None)) == ["model.embed_tokens.weight = lm_head.weight"]
    assert list(parameters_of(tied, "lm_head")) == list(parameters_of(tied, "model.embed_tokens.weight"))
    norms = parameters_of(student, r".*input_layernorm\.weight")
    assert list(norms) == [f"model.layers.{i}.input_layernorm.weight" for i in range(2)]
    assert len(parameters_of(student, "model.layers.1")) < len(parameters_of(student, "model"))


@pytest.mark.parametrize(
    ("name", "hint"),
    [("lm_haed", "'lm_head'"), ("lm_head.weigh", "'lm_head.weight'"), ("model.layers.1.mpl", "'model.layers.1.mlp'")],
)
def test_an_unknown_name_is_said_with_the_nearest(folder: Path, name: str, hint: str) -> None:
    with pytest.raises(PacedError, match=rf"--module {name}.*Did you mean {hint}"):
        parameters_of(model(folder / "student"), name)


def recipe(folder: Path, **settings: object) -> Recipe:
    known = {"student": str(folder / "student"), "teacher": str(folder / "teacher"), "module": None}
    known |= {"objective": Objective("forward_kl"), "responses": 3, "response_length": 6}
    return Recipe(**(known | settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("who", ["student", "tied"])
def test_sizes_are_known_without_the_weights(folder: Path, who: str) -> None:
    loaded = {name: p.numel() for name, p in parameters_of(model(folder / who), "lm_head").items()}
    assert sizes_of(recipe(folder, student=str(folder / who))) == loaded


def test_a_worker_keeps_the_exact_length_and_the_whole_of_a_short_gradient(folder: Path) -> None:
    worker = Worker(recipe(folder))
    found = worker.gradient(PROBLEM)
    student, teacher = model(folder / "student"), model(folder / "teacher")
    expected = plain_gradient(student, teacher, ["lm_head.weight"], "forward_kl")["lm_head.weight"]
    np.testing.assert_allclose(found.sketch, expected.flatten().numpy(), rtol=1e-3, atol=1e-5)
    assert found.squared_norm == pytest.approx(float(expected.square().sum()), rel=1e-4)
    assert (found.prompt, found.tokens) == (5, 8)
    short = Worker(recipe(folder, dimensions=64)).gradient(PROBLEM)
    assert short.sketch.shape == (64,)
    assert short.squared_norm == pytest.approx(found.squared_norm)


def test_the_student_samples_from_its_own_distribution_and_ends_with_its_end(folder: Path) -> None:
    worker = Worker(recipe(folder, responses=4000, response_length=2))
    prompt = Problem(9, (3, 4), (3, 4))
    responses = worker.sampled(prompt)
    student = model(folder / "student")
    with torch.no_grad():
        probabilities = student(input_ids=torch.tensor([[3, 4]])).logits[0, -1].softmax(-1).numpy()
    counts = np.bincount([response[0] for response in responses], minlength=VOCAB)
    expected = 4000 * probabilities
    assert ((counts - expected) ** 2 / expected).sum() < VOCAB + 5 * np.sqrt(2 * VOCAB), "chi square"
    assert all((response[0] in (1, 2)) == (len(response) == 1) for response in responses)
    assert worker.sampled(prompt) == responses
    assert worker.sampled(Problem(10, (3, 4), (3, 4))) != responses


def test_a_problem_without_responses_gets_the_students(folder: Path) -> None:
    worker = Worker(recipe(folder))
    problem = Problem(4, (3, 4), (6,))
    own = worker.gradient(Problem(4, (3, 4), (6,), worker.sampled(problem)))
    assert worker.gradient(problem).squared_norm == own.squared_norm


def test_keys_tell_gradients_apart(folder: Path, tmp_path: Path) -> None:
    make(tmp_path / "student", 0, tied=False)
    one = recipe(folder, student=str(tmp_path / "student"))
    key = one.key(PROBLEM)
    assert recipe(folder, student=str(tmp_path / "student")).key(PROBLEM) == key
    others = [
        recipe(folder).key(PROBLEM),
        recipe(folder, student=str(tmp_path / "student"), seed=1).key(PROBLEM),
        recipe(folder, student=str(tmp_path / "student"), objective=Objective("reverse_kl")).key(PROBLEM),
        one.key(Problem(5, (3, 4, 5), (6, 7, 8, 9), ((12, 13, 14),))),
    ]
    AutoModelForCausalLM.from_pretrained(tmp_path / "student").save_pretrained(tmp_path / "student")
    assert len({key, one.key(PROBLEM), *others}) == 6, "weights that were written again are other weights"
