"""The loss and its gradients are PyTorch's; shared vocabularies are in the tests with real processes."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy as pytorchs

from megatron_kis.model.loss import cross_entropy


class Alone(dist.ProcessGroup):
    """A group of one."""

    def __init__(self) -> None:
        super().__init__(0, 1)

    def size(self) -> int:
        return 1

    def rank(self) -> int:
        return 0


@pytest.mark.parametrize("size", [1.0, 300.0])
def test_it_is_pytorchs_loss_with_its_gradients(size: float) -> None:
    torch.manual_seed(0)
    hidden, labels, mask = torch.randn(6, 3, 8), torch.randint(0, 50, (6, 3)), torch.rand(6, 3).round()
    table = (size * torch.randn(50, 8)).requires_grad_()
    losses = pytorchs((hidden @ table.t()).flatten(0, 1), labels.flatten(), reduction="none").view(6, 3)
    (wanted,) = torch.autograd.grad((losses * mask).sum(), table)
    ours = cross_entropy(hidden @ table.t(), labels, Alone())
    (found,) = torch.autograd.grad((ours * mask).sum(), table)
    torch.testing.assert_close(ours, losses, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_half_precision_logits_are_left_as_they_are() -> None:
    logits = torch.randn(4, 10, dtype=torch.bfloat16, requires_grad=True)
    before = logits.detach().clone()
    losses = cross_entropy(logits, torch.tensor([0, 3, 9, 5]), Alone())
    losses.sum().backward()
    assert torch.equal(logits, before)
    assert losses.dtype == torch.float32
    assert logits.grad is not None and logits.grad.dtype == torch.bfloat16
