"""full_divergence against log_softmax over the whole vocabulary and the definitions; edges, chunks, memory."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from paced_verl.divergence import full, full_divergence, register_divergence, token_divergence
from tests.divergence.test_support import Allocations

NAMES = ["forward_kl", "reverse_kl", "jsd", "akl", "forward_kl_topk"]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def models(n=6, vocab=30, teacher_vocab=None, width=5, dtype=torch.float64):
    """Student logits (n, V), the teacher's hidden states (n, H) and head (V_t, H)."""
    student = torch.randn(n, vocab, dtype=torch.float64) * 2
    hidden = torch.randn(n, width, dtype=torch.float64)
    head = torch.randn(teacher_vocab or vocab, width, dtype=torch.float64)
    return student.to(dtype), hidden.to(dtype), head.to(dtype)


def brute_force(name, logits, hidden, head):
    """The divergence over the student's V tokens, in float64, from probabilities in the most literal form."""
    vocab = logits.shape[1]
    s = logits.double().softmax(-1)
    t = (hidden.double() @ head.double().t())[:, :vocab].softmax(-1)
    t = torch.cat([t, t.new_zeros(len(t), vocab - t.shape[1])], dim=1)
    log_zero = torch.tensor(torch.finfo(torch.float32).tiny, dtype=torch.float64).log()

    def kl(p, q):
        log_p, log_q = (torch.where(x > 0, x, 1.0).log() + (x == 0) * log_zero for x in (p, q))
        return (p * (log_p - log_q)).sum(-1)

    if name == "jsd":
        m = (t + s) / 2
        return (kl(t, m) + kl(s, m)) / 2
    if name == "akl":
        sorted_t, order = t.sort(-1, descending=True)
        gap = (t - s).abs().detach()
        head_of_t = (sorted_t.cumsum(-1) <= 0.5) | (torch.arange(vocab) == 0)
        r = (gap.gather(-1, order) * head_of_t).sum(-1) / gap.sum(-1)
        return r * kl(t, s) + (1 - r) * kl(s, t)
    return kl(s, t) if name == "reverse_kl" else kl(t, s)


def value_and_gradient(function, logits, weights):
    logits = logits.clone().requires_grad_()
    value = function(logits)
    (value * weights).sum().backward()
    return value.detach(), logits.grad


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("teacher_vocab", [30, 41, 19])
def test_is_the_definition_over_the_students_tokens(name, teacher_vocab):
    logits, hidden, head = models(teacher_vocab=teacher_vocab)
    weights = torch.linspace(-1, 2, len(logits), dtype=torch.float64)
    ours = value_and_gradient(lambda z: full_divergence(z, hidden, head, name, chunk_tokens=4).value, logits, weights)
    theirs = value_and_gradient(lambda z: brute_force(name, z, hidden, head), logits, weights)
    torch.testing.assert_close(ours, theirs)
    out = full_divergence(logits, hidden, head, name)
    torch.testing.assert_close(out.forward_kl, brute_force("forward_kl", logits, hidden, head))
    torch.testing.assert_close(out.reverse_kl, brute_force("reverse_kl", logits, hidden, head))
    torch.testing.assert_close(out.student_entropy, torch.distributions.Categorical(logits=logits).entropy())
    assert not out.student_tail.any()
    assert not out.teacher_tail.any()


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd"])
@pytest.mark.parametrize("rows", [None, torch.tensor([3, 0, 1])])
def test_gradcheck(name, rows):
    logits, hidden, head = models(4, 9, 7)
    logits.requires_grad_()
    mix = torch.rand(4 if rows is None else 3)

    def one(z):
        return full_divergence(z, hidden, head, name, rows, chunk_tokens=2).value

    def two(z):
        return full_divergence(z, hidden, head, name, rows, towards="jsd", mix=mix, chunk_tokens=2).value

    assert torch.autograd.gradcheck(one, logits)
    assert torch.autograd.gradcheck(two, logits)


@pytest.mark.parametrize("name", NAMES)
def test_is_the_top_k_path_at_k_equal_to_the_vocabulary(name):
    logits, hidden, head = models()
    log_probs, ids = (hidden @ head.t()).log_softmax(-1).topk(30)
    logits.requires_grad_()
    results = []
    for out in (full_divergence(logits, hidden, head, name), token_divergence(logits, ids, log_probs, name)):
        results.append((tuple(out), torch.autograd.grad(out.value.sum(), logits)))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("teacher_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_low_precision_loses_nothing_but_the_rounding_of_its_arguments(dtype, teacher_dtype, autocast):
    logits, hidden, head = models(5, 700, 650, 64)
    logits, hidden, head = logits.to(DEVICE, dtype), hidden.to(DEVICE, teacher_dtype), head.to(DEVICE, teacher_dtype)
    weights = torch.linspace(-1, 2, 5, dtype=torch.float64, device=DEVICE)

    def ours(z):
        with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=autocast):
            return full_divergence(z, hidden, head, "forward_kl", chunk_tokens=3).value

    value, gradient = value_and_gradient(ours, logits, weights)
    exact, exact_gradient = value_and_gradient(
        lambda z: brute_force("forward_kl", z, hidden, head), logits.double(), weights
    )
    assert value.dtype == torch.float32
    assert gradient.dtype == dtype
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=2 * torch.finfo(dtype).eps, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(0, 7), st.integers(2, 12), st.integers(2, 12)),
    chunk_tokens=st.integers(1, 9),
    name=st.sampled_from(NAMES),
    data=st.data(),
)
def test_chunks_rows_and_mixtures_change_nothing_else(seed, shape, chunk_tokens, name, data):
    torch.manual_seed(seed)
    n, vocab, teacher_vocab = shape
    logits, hidden, head = models(n, vocab, teacher_vocab)
    rows = torch.tensor(data.draw(st.permutations(range(n)))[: data.draw(st.integers(0, n))], dtype=torch.int64)
    mix, weights = torch.rand(len(rows)), torch.randn(len(rows), dtype=torch.float64)

    def mixed(z):
        arguments = {"towards": "reverse_kl", "mix": mix, "chunk_tokens": chunk_tokens}
        return full_divergence(z, hidden, head, name, rows, **arguments).value

    def apart(z):
        start, end = (full_divergence(z, hidden, head, d).value[rows] for d in (name, "reverse_kl"))
        return (1 - mix) * start + mix * end

    value, gradient = value_and_gradient(mixed, logits, weights)
    torch.testing.assert_close((value, gradient), value_and_gradient(apart, logits, weights))
    unused = torch.ones(n, dtype=torch.bool)
    unused[rows] = False
    assert not gradient[unused].any()


def test_no_rows_have_a_gradient_of_zeros():
    logits, hidden, head = models(dtype=torch.bfloat16)
    logits.requires_grad_()
    out = full_divergence(logits, hidden, head, rows=torch.tensor([], dtype=torch.int64))
    assert [x.shape for x in out] == [(0,)] * 6
    out.value.sum().backward()
    assert not logits.grad.any()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("teacher_vocab", [16, 12, 20])
def test_zeros_are_finite(name, dtype, teacher_vocab):
    logits, hidden, head = models(5, 16, teacher_vocab, dtype=dtype)
    logits[0, :5] = -torch.inf
    logits[1, 1:] = -torch.inf
    hidden[2] *= 300  # all of the teacher on one token
    logits[3] *= 100
    logits.requires_grad_()
    mix = torch.rand(5)
    for out in (
        full_divergence(logits, hidden, head, name),
        full_divergence(logits, hidden, head, name, towards="reverse_kl", mix=mix),
    ):
        assert all(x.isfinite().all() for x in out)
        assert torch.autograd.grad(out.value.sum(), logits)[0].isfinite().all()


def test_a_padded_head_does_not_count():
    logits, hidden, head = models(teacher_vocab=40)
    head[30:] *= 50  # were these tokens, they would have all of the probability
    for padded, cut in zip(
        full_divergence(logits, hidden, head), full_divergence(logits, hidden, head[:30]), strict=True
    ):
        assert torch.equal(padded, cut)


def test_only_the_value_and_only_the_student_have_a_gradient():
    logits, hidden, head = (x.requires_grad_() for x in models())
    mix = torch.rand(6, requires_grad=True)
    out = full_divergence(logits, hidden, head, towards="jsd", mix=mix)
    assert [x.requires_grad for x in out] == [True, False, False, False, False, False]
    out.value.sum().backward()
    assert logits.grad.any()
    assert hidden.grad is head.grad is mix.grad is None


def test_one_of_your_own_with_its_parameters(monkeypatch):
    monkeypatch.setattr("paced_verl.divergence.functions._REGISTRY", {})

    @register_divergence("power")
    def power(student, teacher, exponent):
        return (teacher.exp() - student.exp()).abs().pow(exponent).sum(-1)

    logits, hidden, head = models()
    gap = (logits.softmax(-1) - (hidden @ head.t()).softmax(-1)).abs()
    torch.testing.assert_close(full_divergence(logits, hidden, head, "power", exponent=3).value, gap.pow(3).sum(-1))


def test_wrong_arguments_are_named():
    logits, hidden, head = models()
    with pytest.raises(ValueError, match=r"teacher head \(V_t, H\), got \(6, 30\), \(6, 5\) and \(30, 4\)"):
        full_divergence(logits, hidden, head[:, :4])
    with pytest.raises(ValueError, match=r"got \(6, 30\), \(5, 5\)"):
        full_divergence(logits, hidden[:5], head)
    with pytest.raises(ValueError, match="chunk_tokens of 1 or more, or None, got 0"):
        full_divergence(logits, hidden, head, chunk_tokens=0)
    with pytest.raises(ValueError, match="go together"):
        full_divergence(logits, hidden, head, towards="jsd")
    with pytest.raises(ValueError, match="no divergence 'kl'"):
        full_divergence(logits, hidden, head, "kl")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [None, torch.arange(0, 64, 2)])
def test_memory_is_chunks_and_the_gradient(monkeypatch, dtype, rows):
    n, vocab, width = 64, 2000, 8
    chunk = 4 * (vocab + 1) * 4  # four float32 rows, and their tails
    monkeypatch.setattr(full, "CHUNK_BYTES", 4 * vocab * 4)
    logits, hidden, head = (x.detach() for x in models(n, vocab, width=width, dtype=dtype))
    logits.requires_grad_()
    with Allocations() as allocations:
        full_divergence(logits, hidden, head, rows=rows).value.sum().backward()
    large = [(kind, size) for kind, size in allocations.bytes if size > chunk]
    assert large == [(dtype, n * vocab * dtype.itemsize)]  # the gradient, in the logits' dtype
    assert max(size for _, size in allocations.bytes) >= chunk  # the measurement sees what there is to see


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_branch_that_only_cuda_takes_is_a_product_in_float32(dtype):
    """With tensors that have no numbers: shapes and types as torch's CUDA operators would give them."""
    with FakeTensorMode(), torch.no_grad():
        hidden, head = torch.empty(6, 64, device="cuda", dtype=dtype), torch.empty(1000, 64, device="cuda", dtype=dtype)
        product = full._product(hidden, head, torch.float32)
    assert product.is_cuda
    assert (product.dtype, product.shape) == (torch.float32, (6, 1000))
