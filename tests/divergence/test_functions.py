"""Divergences: exactness against the full vocabulary, their inequalities, zeros, and verl's own top-k loss."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paced_verl.divergence import (
    get_divergence,
    register_divergence,
    support_log_probs,
    teacher_categories,
    token_divergence,
)
from paced_verl.divergence.functions import akl, forward_kl, jsd, reverse_kl

NAMES = ["forward_kl", "reverse_kl", "jsd", "akl", "forward_kl_topk"]
KLS = ["forward_kl", "reverse_kl", "jsd"]  # never negative, and never above the full divergence
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def random_pair(n, vocab, dtype=torch.float64, scale=3.0):
    """Student logits and the teacher's log-probabilities over the vocabulary, (n, V) both."""
    return torch.randn(n, vocab, dtype=dtype) * scale, torch.log_softmax(torch.randn(n, vocab, dtype=dtype) * scale, -1)


def topk_divergence(logits, teacher, k, name, **params):
    log_probs, ids = teacher.topk(k)
    return token_divergence(logits, ids, log_probs, name, **params)


def full(name, logits, teacher):
    """The divergence over the vocabulary, from probabilities, in the most literal form."""
    s, t = logits.softmax(-1), teacher.exp()

    def kl(p, q):
        return (p * (p / q).log()).sum(-1)

    if name == "akl":
        sorted_t, order = t.sort(-1, descending=True)
        gap = (t - s).abs()
        head = (sorted_t.cumsum(-1) <= 0.5) | (torch.arange(t.shape[-1]) == 0)
        r = (gap.gather(-1, order) * head).sum(-1) / gap.sum(-1)
        return r * kl(t, s) + (1 - r) * kl(s, t)
    if name == "jsd":
        m = (t + s) / 2
        return (kl(t, m) + kl(s, m)) / 2
    return kl(s, t) if name == "reverse_kl" else kl(t, s)


@pytest.mark.parametrize("name", NAMES)
def test_whole_vocabulary_is_the_full_divergence(name):
    logits, teacher = random_pair(6, 40)
    torch.testing.assert_close(topk_divergence(logits, teacher, 40, name).value, full(name, logits, teacher))


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd", "forward_kl_topk"])
@pytest.mark.parametrize("k", [4, 12])
def test_gradcheck(name, k):
    logits, teacher = random_pair(2, 12, scale=1.0)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: topk_divergence(z, teacher, k, name).value, logits)


def test_akl_gradient_holds_the_mixing_weight_constant():
    logits, teacher = random_pair(5, 12)
    logits.requires_grad_()
    out = topk_divergence(logits, teacher, 4, "akl")
    with torch.no_grad():
        r = (out.value - out.reverse_kl) / (out.forward_kl - out.reverse_kl)
    assert ((r >= 0) & (r <= 1)).all()
    gradient = torch.autograd.grad(out.value.sum(), logits)[0]
    parts = [
        torch.autograd.grad(topk_divergence(logits, teacher, 4, name).value.sum(), logits)[0]
        for name in ("forward_kl", "reverse_kl")
    ]
    torch.testing.assert_close(gradient, r[:, None] * parts[0] + (1 - r)[:, None] * parts[1])


def test_akl_head_is_found_in_any_order_and_is_never_the_tail():
    teacher = torch.tensor([[0.1, 0.3, 0.2, 0.4]]).log()  # head: 0.3 and 0.2 = half the mass; the tail is 0.4
    student = torch.tensor([[0.25, 0.25, 0.25, 0.25]]).log()
    r = (0.05 + 0.05) / (0.15 + 0.05 + 0.05 + 0.15)
    expected = r * forward_kl(student, teacher) + (1 - r) * reverse_kl(student, teacher)
    torch.testing.assert_close(akl(student, teacher), expected)


def test_forward_kl_pushes_each_logit_by_the_difference_of_probabilities():
    logits, teacher = random_pair(4, 20)
    logits.requires_grad_()
    topk_divergence(logits, teacher, 20, "forward_kl").value.sum().backward()
    torch.testing.assert_close(logits.grad, logits.detach().softmax(-1) - teacher.exp())


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), vocab=st.integers(3, 60), scale=st.floats(0.0, 3.0), data=st.data())
def test_lower_bound_never_negative_and_growing_with_k(seed, vocab, scale, data):
    torch.manual_seed(seed)
    logits, teacher = random_pair(4, vocab, scale=scale)
    k = sorted(data.draw(st.lists(st.integers(1, vocab), min_size=1, max_size=3)))
    for name in KLS:
        values = [topk_divergence(logits, teacher, i, name).value for i in k]
        values.append(topk_divergence(logits, teacher, vocab, name).value)
        assert (values[0] >= -1e-12).all()
        for smaller, larger in itertools.pairwise(values):
            assert (smaller <= larger * (1 + 1e-8) + 1e-12).all()


@pytest.mark.parametrize("name", KLS)
def test_equal_distributions_are_at_zero(name):
    logits, _ = random_pair(4, 500, dtype=torch.float32)
    logits.requires_grad_()
    out = topk_divergence(logits, logits.detach().log_softmax(-1), 16, name)
    out.value.sum().backward()
    torch.testing.assert_close(out.value, torch.zeros(4), atol=2e-6, rtol=0)
    torch.testing.assert_close(logits.grad, torch.zeros(4, 500), atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [4, 16])
def test_zeros_are_finite(name, dtype, k):
    logits, teacher = random_pair(5, 16, dtype=torch.float32)
    log_probs, ids = teacher.topk(k)
    log_probs[0, -1] = -torch.inf
    log_probs[1] = torch.tensor([0.0] + [-torch.inf] * (k - 1))  # all on one token
    logits[2, ids[2, 0]] = -torch.inf
    logits[3] = torch.full((16,), -torch.inf).scatter(0, ids[3, :2], 1.0)  # nothing outside two tokens
    ids[4], log_probs[4] = 3, 0.0  # verl's padding rows
    logits = logits.to(dtype).requires_grad_()
    out = token_divergence(logits, ids, log_probs.to(dtype), name)
    assert all(x.isfinite().all() for x in out)
    out.value.sum().backward()
    assert logits.grad.isfinite().all()


def test_a_zero_of_the_teacher_counts_as_the_smallest_float32():
    student, teacher = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.0, -torch.inf]])
    expected = 0.5 * (torch.tensor(0.5).log() - 0) + 0.5 * (torch.tensor(0.5) / torch.finfo(torch.float32).tiny).log()
    torch.testing.assert_close(reverse_kl(student, teacher), expected.view(1))
    torch.testing.assert_close(forward_kl(student, teacher), torch.tensor([2.0]).log())


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_teacher_categories_are_a_distribution(dtype):
    log_probs = torch.log_softmax(torch.randn(50, 100) * 10, -1).topk(64).values.to(dtype)
    categories = teacher_categories(log_probs, vocab_size=1000)
    assert categories.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert (categories[:, -1].exp() >= 0.9 * torch.finfo(dtype).eps).all()
    torch.testing.assert_close(categories.exp().sum(-1), torch.ones(50, dtype=categories.dtype))


def test_teacher_categories_keep_what_is_known():
    log_probs = torch.tensor([[0.5, 0.3]]).log()
    assert torch.equal(teacher_categories(log_probs, 10)[:, :2], log_probs)
    torch.testing.assert_close(teacher_categories(log_probs, 10)[:, 2].exp(), torch.tensor([0.2]))
    assert torch.equal(teacher_categories(log_probs, 2), torch.tensor([[log_probs[0, 0], log_probs[0, 1], -torch.inf]]))


def test_a_tail_that_is_said_is_taken_at_its_word():
    log_probs, tail = torch.tensor([[0.5, 0.3], [0.6, 0.4], [0.6, 0.4]]).log(), torch.tensor([0.2, 1e-12, 0.0]).log()
    categories = teacher_categories(log_probs, 10, tail)
    torch.testing.assert_close(categories[:, 2], tail)
    assert categories[0, :2].equal(log_probs[0])
    torch.testing.assert_close(categories.exp().sum(-1), torch.ones(3))
    assert teacher_categories(log_probs, 2, tail)[:, 2].eq(-torch.inf).all(), "at k = V there is none"


@pytest.mark.parametrize(
    ("dtype", "floor"),
    [(torch.float64, 2.3e-16), (torch.float32, 9.6e-7), (torch.float16, 1e-3), (torch.bfloat16, 8e-3)],
)
def test_an_unsaid_tail_is_at_least_what_its_sum_can_resolve(dtype, floor):
    tail = teacher_categories(torch.tensor([[0.0, -40.0]], dtype=dtype), 10)[0, -1].exp()
    assert float(tail) == pytest.approx(floor, rel=0.05)


def test_diagnostics_have_no_gradient_and_follow_the_rows():
    logits, teacher = random_pair(4, 30)
    logits.requires_grad_()
    log_probs, ids = teacher.topk(5)
    rows = torch.tensor([3, 1])
    out = token_divergence(logits, ids, log_probs, "jsd", rows=rows, beta=0.3)
    assert [x.requires_grad for x in out] == [True, False, False, False, False, False]
    torch.testing.assert_close(out.teacher_tail, (1 - log_probs.exp().sum(-1))[rows])
    torch.testing.assert_close(out.student_tail, (1 - logits.softmax(-1).gather(1, ids).sum(-1))[rows].detach())
    torch.testing.assert_close(out.forward_kl, token_divergence(logits, ids, log_probs).value[rows].detach())
    torch.testing.assert_close(
        out.reverse_kl, token_divergence(logits, ids, log_probs, "reverse_kl").value[rows].detach()
    )


def test_student_entropy_is_over_the_categories():
    logits, teacher = random_pair(4, 30)
    logits[1] = torch.full((30,), -torch.inf).scatter(0, teacher[1].topk(5).indices, 0.0)  # even, without a tail
    log_probs, ids = teacher.topk(5)
    p = torch.cat([logits.softmax(-1).gather(1, ids), 1 - logits.softmax(-1).gather(1, ids).sum(-1, keepdim=True)], 1)
    expected = torch.distributions.Categorical(p.clamp_min(0.0)).entropy()
    out = token_divergence(logits, ids, log_probs)
    torch.testing.assert_close(out.student_entropy, expected)
    torch.testing.assert_close(out.student_entropy[1], torch.tensor(5.0, dtype=torch.float64).log())
    whole = topk_divergence(logits[2:], teacher[2:], 30, "reverse_kl").student_entropy
    torch.testing.assert_close(whole, torch.distributions.Categorical(logits=logits[2:]).entropy())


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    names=st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES)),
    shares=st.lists(st.floats(0, 1), min_size=3, max_size=3),
)
def test_an_interpolation_is_the_two_divergences_and_their_gradients_in_these_shares(seed, names, shares):
    torch.manual_seed(seed)
    logits, teacher = random_pair(5, 12)
    logits.requires_grad_()
    log_probs, ids = teacher.topk(4)
    rows, mix = torch.tensor([4, 0, 2]), torch.tensor(shares, dtype=torch.float64, requires_grad=True)

    def value_and_gradient(*args, **kwargs):
        out = token_divergence(logits, ids, log_probs, *args, rows=rows, **kwargs)
        return out, torch.autograd.grad(out.value.sum(), logits)[0]

    (start, start_gradient), (end, end_gradient) = value_and_gradient(names[0]), value_and_gradient(names[1])
    mixed, gradient = value_and_gradient(names[0], towards=names[1], mix=mix)
    share, row_share = mix.detach(), torch.zeros(5, 1, dtype=torch.float64).index_put((rows,), mix.detach()[:, None])
    torch.testing.assert_close(mixed.value, start.value + share * (end.value - start.value))
    torch.testing.assert_close(gradient, start_gradient + row_share * (end_gradient - start_gradient))
    assert torch.equal(mixed.student_entropy, start.student_entropy)
    assert torch.autograd.grad(mixed.value.sum(), mix, allow_unused=True) == (None,)


def test_the_ends_of_an_interpolation_are_the_two_divergences_to_the_last_bit():
    logits, teacher = random_pair(6, 40, dtype=torch.float32)
    log_probs, ids = teacher.topk(8)
    for share, name in [(0.0, "akl"), (1.0, "reverse_kl")]:
        mixed = token_divergence(logits, ids, log_probs, "akl", towards="reverse_kl", mix=torch.full((6,), share))
        assert torch.equal(mixed.value, token_divergence(logits, ids, log_probs, name).value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"towards": "jsd"}, "towards and mix go together, got towards='jsd' without mix"),
        ({"mix": torch.zeros(2)}, "towards and mix go together, got towards=None and mix"),
        ({"towards": "jsd", "mix": torch.zeros(2), "beta": 0.3}, r"towards='jsd' takes none, got \['beta'\]"),
        ({"towards": "jsd", "mix": torch.zeros(3)}, r"want mix \(2,\), one number a selected row, got \(3,\)"),
        ({"towards": "jsd", "mix": torch.tensor(0.5)}, r"want mix \(2,\).*got \(\)"),
        ({"towards": "revers_kl", "mix": torch.zeros(2)}, "Did you mean 'reverse_kl'"),
    ],
)
def test_half_an_interpolation_is_refused(arguments, message):
    logits, teacher = random_pair(3, 8)
    log_probs, ids = teacher.topk(2)
    with pytest.raises(ValueError, match=message):
        token_divergence(logits, ids, log_probs, rows=torch.tensor([0, 2]), **arguments)


def test_jsd_tends_to_the_two_kls():
    logits, teacher = random_pair(4, 20, scale=1.0)
    out = topk_divergence(logits, teacher, 20, "jsd", beta=1e-6)
    torch.testing.assert_close(out.value / 1e-6, out.forward_kl, rtol=1e-4, atol=0)
    out = topk_divergence(logits, teacher, 20, "jsd", beta=1 - 1e-6)
    torch.testing.assert_close(out.value / 1e-6, out.reverse_kl, rtol=1e-4, atol=0)
    with pytest.raises(ValueError, match="0 < beta < 1"):
        jsd(logits, teacher, beta=1.0)


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_forward_kl_topk_is_verls(chunked, dtype):
    losses = pytest.importorskip("verl.trainer.distillation.fsdp.losses")
    lengths, vocab, k = [3, 5, 2], 400, 16
    logits, teacher = random_pair(sum(lengths), vocab, dtype=dtype)
    log_probs, ids = teacher.topk(k)
    config = SimpleNamespace(distillation_loss=SimpleNamespace(log_prob_min_clamp=None, use_chunked_topk=chunked))
    theirs_logits = logits.clone().requires_grad_()
    theirs = losses.compute_forward_kl_topk(
        student_logits=theirs_logits.unsqueeze(0),
        teacher_topk_log_probs=torch.nested.nested_tensor(list(log_probs.split(lengths)), layout=torch.jagged),
        teacher_topk_ids=torch.nested.nested_tensor(list(ids.split(lengths)), layout=torch.jagged),
        config=config,
        data_format="thd",
    )
    logits.requires_grad_()
    ours = token_divergence(logits, ids.int(), log_probs, "forward_kl_topk")
    # verl computes this loss in float32 whatever it is given, and clamps it where it aggregates.
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(ours.value.float(), theirs["distillation_losses"][0].clamp_min(0.0), **close)
    torch.testing.assert_close(1 - ours.student_tail, theirs["student_mass"][0].detach(), **close)
    torch.testing.assert_close(1 - ours.teacher_tail, theirs["teacher_mass"][0], **close)
    ours.value.sum().backward()
    theirs["distillation_losses"].clamp_min(0.0).sum().backward()
    torch.testing.assert_close(logits.grad, theirs_logits.grad, **close)


def test_one_of_your_own(monkeypatch):
    monkeypatch.setattr("paced_verl.divergence.functions._REGISTRY", {})

    @register_divergence("total_variation")
    def total_variation(student, teacher):
        return (teacher.exp() - student.exp()).abs().sum(-1) / 2

    logits, teacher = random_pair(4, 20)
    logits.requires_grad_()
    value = topk_divergence(logits, teacher, 20, "total_variation").value
    torch.testing.assert_close(value, (teacher.exp() - logits.softmax(-1)).abs().sum(-1) / 2)
    value.sum().backward()
    with pytest.raises(ValueError, match="already registered"):
        register_divergence("total_variation")(total_variation)


def test_unknown_names_get_a_hint():
    with pytest.raises(ValueError, match=r"no divergence 'forwad_kl'\. Did you mean 'forward_kl'\?"):
        get_divergence("forwad_kl")
    with pytest.raises(ValueError, match="Choose from: akl, forward_kl, forward_kl_topk, jsd, reverse_kl"):
        get_divergence("zzz")


def test_teacher_shapes_must_agree():
    with pytest.raises(ValueError, match="differ in shape"):
        token_divergence(torch.randn(2, 8), torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 4))


VOCABULARY, K = 151_936, 64


def peaked_teacher(rows, smallest=-9.0, largest=-3.0):
    """Float32 logits whose tail, outside the K largest, is log-uniform between these powers of 10; the K ids; log tail.

    The tail is computed in float64 from these same logits.
    """
    logits = torch.randn(rows, VOCABULARY)
    top = logits.topk(K)
    rest = logits.scatter(1, top.indices, -torch.inf).logsumexp(-1)
    odds = torch.logit(10 ** (torch.rand(rows) * (largest - smallest) + smallest))
    logits.scatter_(1, top.indices, top.values + (rest - odds - top.values.logsumexp(-1)).unsqueeze(1))
    exact = logits.double()
    log_tail = exact.scatter(1, top.indices, -torch.inf).logsumexp(-1) - exact.logsumexp(-1)
    return logits, top.indices, log_tail


def log_softmax_of_a_gpu(logits):
    """In float32, the sum in 1,024 parts."""
    shifted = logits - logits.amax(1, keepdim=True)
    parts = torch.nn.functional.pad(shifted.exp(), (0, -VOCABULARY % 1024)).view(len(logits), -1, 1024)
    total = torch.zeros(len(logits), 1024)
    for part in parts.unbind(1):
        total = total + part
    while total.shape[1] > 1:
        total = total[:, ::2] + total[:, 1::2]
    return shifted - total.log()


def wandering_student(ids):
    """Logits of a student with 85 % of its mass outside the teacher's tokens."""
    logits = torch.randn(len(ids), VOCABULARY)
    top = logits.gather(1, ids)
    rest = logits.scatter(1, ids, -torch.inf).logsumexp(-1)
    share = torch.logit(torch.tensor(0.15))
    return logits.scatter_(1, ids, top + (rest + share - top.logsumexp(-1)).unsqueeze(1))


def reverse_kl_in_float64(student, teacher, ids, log_tail):
    log_p = torch.cat([teacher.double().log_softmax(-1).gather(1, ids), log_tail.unsqueeze(1)], 1)
    exact = student.double()
    rest = exact.scatter(1, ids, -torch.inf).logsumexp(-1) - exact.logsumexp(-1)
    log_q = torch.cat([exact.log_softmax(-1).gather(1, ids), rest.unsqueeze(1)], 1)
    return (log_q.exp() * (log_q - log_p)).sum(-1)


def test_reverse_kl_is_exact_where_the_teacher_says_its_tail():
    teacher, ids, log_tail = peaked_teacher(48, smallest=-20.0)
    student = wandering_student(ids)
    said = support_log_probs(teacher, ids)
    out = token_divergence(student, ids, said[:, :K], "reverse_kl", teacher_tail=said[:, K])
    exact = reverse_kl_in_float64(student, teacher, ids, log_tail)
    assert exact.max() > 30, "a tail of 1e-20 counts as 1e-20"
    torch.testing.assert_close(out.value.double(), exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out.teacher_tail.double(), log_tail.exp(), rtol=1e-4, atol=0)
    rows = torch.tensor([7, 3])
    part = token_divergence(student, ids, said[:, :K], "reverse_kl", rows, teacher_tail=said[:, K])
    torch.testing.assert_close(part.value, out.value[rows])


def test_a_student_is_not_punished_for_the_rounding_of_a_servers_softmax():
    """Tails of 1e-9 to 1e-3 from 1 − Σ p in float32: at most .25 nats above the truth, and near it from 1e-6 on."""
    above, errors = [], []
    for _ in range(8):
        teacher, ids, log_tail = peaked_teacher(32)
        student = wandering_student(ids)
        out = token_divergence(student, ids, log_softmax_of_a_gpu(teacher).gather(1, ids), "reverse_kl")
        error = out.value.double() - reverse_kl_in_float64(student, teacher, ids, log_tail)
        above.append(error.max())
        errors.append(error[log_tail > -6 * torch.tensor(10.0).log()])
    assert max(above) < 0.25
    assert torch.cat(errors).abs().max() < 0.3
    assert torch.cat(errors).abs().mean() < 0.05


@pytest.mark.parametrize("name", KLS)
@pytest.mark.parametrize("noise", [0.0, 1e-4, 0.1, 3.0])
def test_in_float32_the_lower_bound_holds_up_to_a_millionth_of_a_nat(name, noise):
    """With the teacher's own tail: not below 0, not above the full value, not falling with k, up to rounding."""
    for scale in (1.0, 8.0):
        teacher = torch.randn(64, 4000) * scale
        logits = teacher + noise * torch.randn(64, 4000)
        exact = full(name, logits.double(), teacher.double().log_softmax(-1))
        slack = 1e-6 + 1e-5 * exact.nan_to_num(1.0)
        previous = torch.full((64,), -1e-6, dtype=torch.float64)
        for k in (1, 4, 16, 64, 4000):
            ids = teacher.topk(k).indices
            said = support_log_probs(teacher, ids)
            value = token_divergence(logits, ids, said[:, :k], name, teacher_tail=said[:, k]).value.double()
            assert (value >= -1e-6).all()
            assert (value >= previous - slack).all()
            previous = value
            if exact.isfinite().all():
                assert (value <= exact + slack).all()
