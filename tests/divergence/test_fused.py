"""The Triton kernels against the plain torch path: on a GPU, or anywhere with ``TRITON_INTERPRET=1``.

Triton reads that variable when it is first imported, which may be before this file, so it has to be in the environment.
"""

import os

import pytest
import torch

from paced_verl.divergence import support, support_log_probs

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytest.importorskip("triton")
if DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("no GPU, and TRITON_INTERPRET=1 is not set", allow_module_level=True)


def value_and_gradient(monkeypatch, kernel, logits, ids, rows):
    monkeypatch.setattr(support, "_has_kernel", lambda _: kernel)
    logits = logits.clone().requires_grad_()
    out = support_log_probs(logits, ids, rows)
    weights = torch.linspace(-1, 2, out.numel(), device=DEVICE).view_as(out)
    (out * weights).masked_fill(out == -torch.inf, 0.0).sum().backward()
    return out.detach(), logits.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [None, [4, 1, 3]])
@pytest.mark.parametrize(("vocab", "k"), [(9001, 64), (8192, 3), (40, 40), (5, 1)])
def test_same_as_torch(monkeypatch, dtype, rows, vocab, k):
    torch.manual_seed(0)
    logits = (torch.randn(6, vocab, device=DEVICE) * 4).to(dtype)
    ids = torch.rand(6, vocab, device=DEVICE).topk(k).indices
    ids[1] = 2  # a padding row
    logits[2, 1:] = -torch.inf
    logits[3, : vocab // 2] = -torch.inf
    logits[4, ids[4, 0]] = 60.0  # a tail far below the ids
    rows = None if rows is None else torch.tensor(rows, device=DEVICE)
    ours, gradient = value_and_gradient(monkeypatch, True, logits, ids, rows)
    plain, plain_gradient = value_and_gradient(monkeypatch, False, logits, ids, rows)
    torch.testing.assert_close(ours, plain, rtol=1e-6, atol=4e-6)
    torch.testing.assert_close(gradient, plain_gradient, rtol=max(1e-5, torch.finfo(dtype).eps), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("begin", [0, 1, 3])
@pytest.mark.parametrize("stride", [4113, 4112, 4104])
def test_rows_may_begin_anywhere(monkeypatch, dtype, begin, stride):
    """Part of the columns of wider rows: the first token, and with it every row, lies anywhere in its 16 bytes."""
    torch.manual_seed(0)
    vocab = 4099  # a block and three tokens
    logits = (torch.randn(4, stride, device=DEVICE) * 4).to(dtype)[:, begin : begin + vocab]
    ids = torch.rand(4, vocab, device=DEVICE).topk(5).indices
    ids[0, :3] = torch.tensor([0, 4095, vocab - 1])
    monkeypatch.setattr(support, "_has_kernel", lambda _: True)
    ours = support._rest_logsumexp(logits, ids, None)
    gradient = support._rest_gradient(logits, ids, None, ours, torch.linspace(-1, 2, 4, device=DEVICE))
    monkeypatch.setattr(support, "_has_kernel", lambda _: False)
    plain = support._rest_logsumexp(logits, ids, None)
    plain_gradient = support._rest_gradient(logits, ids, None, plain, torch.linspace(-1, 2, 4, device=DEVICE))
    torch.testing.assert_close(ours, plain, rtol=1e-6, atol=4e-6)
    for each in (gradient, plain_gradient):
        each.scatter_(1, ids, 0.0)  # what is left there means nothing
    torch.testing.assert_close(gradient, plain_gradient, rtol=max(1e-5, torch.finfo(dtype).eps), atol=1e-5)


def test_no_rows(monkeypatch):
    out, gradient = value_and_gradient(
        monkeypatch,
        True,
        torch.randn(3, 8, device=DEVICE),
        torch.zeros(3, 2, dtype=torch.int64, device=DEVICE),
        torch.tensor([], dtype=torch.int64, device=DEVICE),
    )
    assert out.shape == (0, 3)
    assert not gradient.any()
