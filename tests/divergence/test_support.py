"""support_log_probs against a full log_softmax: values, gradients, edge rows, memory."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from paced_verl.divergence import support, support_log_probs


def brute_force(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The k+1 log-probabilities from log_softmax over the whole vocabulary, in the logits' dtype."""
    full = torch.log_softmax(logits, dim=-1)
    rest = full.scatter(1, ids, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([full.gather(1, ids), rest], dim=-1)


def distinct_ids(n: int, vocab: int, k: int) -> torch.Tensor:
    return torch.rand(n, vocab).topk(k).indices


def value_and_gradient(function, logits, *args):
    logits = logits.clone().requires_grad_()
    out = function(logits, *args)
    weights = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)
    (out * weights).sum().backward()
    return out.detach(), logits.grad


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("k", [1, 5, 36])
def test_matches_the_full_softmax(k):
    logits, ids = torch.randn(7, 37, dtype=torch.float64) * 4, distinct_ids(7, 37, k)
    for ours, theirs in zip(
        value_and_gradient(support_log_probs, logits, ids), value_and_gradient(brute_force, logits, ids), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_gradcheck():
    logits = torch.randn(4, 11, dtype=torch.float64, requires_grad=True)
    ids, rows = distinct_ids(4, 11, 3), torch.tensor([2, 0])
    assert torch.autograd.gradcheck(lambda z: support_log_probs(z, ids), logits)
    assert torch.autograd.gradcheck(lambda z: support_log_probs(z, ids, rows), logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("ids_dtype", [torch.int32, torch.int64])
def test_low_precision_logits_lose_nothing_but_their_own_rounding(dtype, ids_dtype):
    logits, ids = (torch.randn(5, 1000) * 3).to(dtype), distinct_ids(5, 1000, 8)
    out, gradient = value_and_gradient(support_log_probs, logits, ids.to(ids_dtype))
    exact, exact_gradient = value_and_gradient(brute_force, logits.double(), ids)
    assert out.dtype == torch.float32
    assert gradient.dtype == dtype
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=2 * torch.finfo(dtype).eps, atol=1e-5)


def test_a_tiny_tail_is_exact():
    logits = torch.zeros(1, 1001)
    logits[0, 0] = 60.0
    tail = support_log_probs(logits, torch.tensor([[0]]))[0, 1]
    torch.testing.assert_close(tail, torch.tensor(1000.0).log() - 60)  # 1 − p is 0 in float64 too


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_whole_vocabulary_has_no_tail(dtype):
    logits, ids = torch.randn(3, 9, dtype=dtype, requires_grad=True), distinct_ids(3, 9, 9)
    out = support_log_probs(logits, ids)
    assert (out[:, -1] == -torch.inf).all()
    torch.testing.assert_close(out[:, :-1], torch.log_softmax(logits, -1).gather(1, ids))
    out[:, 0].sum().backward()
    expected = torch.nn.functional.one_hot(ids[:, 0], 9) - logits.detach().softmax(-1)
    torch.testing.assert_close(logits.grad, expected.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masked_logits_and_repeated_ids_stay_finite(dtype):
    logits = torch.randn(4, 20, dtype=dtype)
    ids = distinct_ids(4, 20, 3)
    ids[0] = 7  # verl's padding rows repeat one token
    logits[1, ids[1, 0]] = -torch.inf
    logits[2] = logits[2].scatter(0, (ids[2, 0] + 1 + torch.arange(5)) % 20, -torch.inf)
    logits[3] = torch.full((20,), -torch.inf, dtype=dtype).scatter(0, ids[3], logits[3, ids[3]])  # empty tail
    logits.requires_grad_()
    out = support_log_probs(logits, ids)
    assert not out.isnan().any()
    assert out[0].isfinite().all()
    assert out[1, 0] == out[3, -1] == -torch.inf
    out.exp().sum().backward()
    assert logits.grad.isfinite().all()


def test_rows_are_the_same_as_a_mask():
    logits, ids = torch.randn(9, 30), distinct_ids(9, 30, 4)
    rows = torch.tensor([1, 2, 6, 8])

    def masked(z, i):
        return support_log_probs(z, i)[rows]

    for ours, theirs in zip(
        value_and_gradient(support_log_probs, logits, ids, rows), value_and_gradient(masked, logits, ids), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_rows_may_be_of_any_integer_dtype(monkeypatch):
    """What a kernel multiplies by the row stride is 64 bits wide, whatever it came as."""
    seen = []
    plain = support._rest_logsumexp
    monkeypatch.setattr(support, "_rest_logsumexp", lambda z, i, rows: seen.append(rows.dtype) or plain(z, i, rows))
    logits, ids = torch.randn(9, 30), distinct_ids(9, 30, 4)
    rows = torch.tensor([1, 2, 6, 8])
    expected = value_and_gradient(support_log_probs, logits, ids, rows)
    for ours, theirs in zip(value_and_gradient(support_log_probs, logits, ids, rows.int()), expected, strict=True):
        assert torch.equal(ours, theirs)
    assert seen == [torch.int64] * 2


def test_no_rows():
    logits = torch.randn(3, 8, requires_grad=True)
    out = support_log_probs(logits, distinct_ids(3, 8, 2), torch.tensor([], dtype=torch.int64))
    assert out.shape == (0, 3)
    out.sum().backward()
    assert not logits.grad.any()


def test_strides_are_free():
    logits, ids = torch.randn(30, 9).t(), distinct_ids(9, 30, 4)
    for ours, theirs in zip(
        value_and_gradient(support_log_probs, logits, ids),
        value_and_gradient(support_log_probs, logits.contiguous(), ids),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_chunk_size_never_changes_a_bit(monkeypatch):
    logits, ids = torch.randn(50, 3001), distinct_ids(50, 3001, 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    for rows in (None, torch.arange(1, 50, 2)):
        results = []
        for chunk_rows in (50, 1, 3, 7):
            monkeypatch.setattr(support, "CPU_CHUNK_BYTES", chunk_rows * 3001 * 4)
            results.append(value_and_gradient(support_log_probs, logits, ids, rows))
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"logits \(n, V\) and ids \(n, k\), got \(3, 8\) and \(2, 4\)"):
        support_log_probs(torch.randn(3, 8), torch.zeros(2, 4, dtype=torch.int64))


class Allocations(TorchDispatchMode):
    """Bytes of each new storage, by dtype."""

    def __init__(self):
        super().__init__()
        self.storages = {}  # kept alive, or a new one could pass for an old one at the same address
        self.bytes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, torch.Tensor):
                self.note(tensor)
        out = func(*args, **kwargs)
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and self.note(tensor):
                self.bytes.append((tensor.dtype, tensor.untyped_storage().nbytes()))
        return out

    def note(self, tensor):
        """Whether this tensor's storage is a new one."""
        storage = tensor.untyped_storage()
        new = storage._cdata not in self.storages
        self.storages[storage._cdata] = storage
        return new


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [None, torch.arange(0, 64, 2)])
def test_memory_is_one_chunk_and_the_gradient(monkeypatch, dtype, rows):
    n, vocab, k = 64, 2000, 4
    chunk = 4 * vocab * 4  # four float32 rows
    monkeypatch.setattr(support, "CPU_CHUNK_BYTES", chunk)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    logits, ids = torch.randn(n, vocab, dtype=dtype, requires_grad=True), distinct_ids(n, vocab, k)
    with Allocations() as allocations:
        support_log_probs(logits, ids, rows).sum().backward()
    large = [(kind, size) for kind, size in allocations.bytes if size > chunk]
    assert large == [(dtype, n * vocab * dtype.itemsize)]  # the gradient, in the logits' dtype
    assert max(size for _, size in allocations.bytes) >= chunk  # the measurement sees what there is to see
