"""Logits in blocks, against all of them at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.distributed as dist

from megatron_kis.probes import readout


class Alone(dist.ProcessGroup):
    def size(self) -> int:
        return 1

    def rank(self) -> int:
        return 0


@pytest.mark.parametrize(("nodes", "tokens"), [(1, 3), (16, 32), (17, 33), (40, 31), (7, 100)])
def test_blocks_give_what_all_logits_give(nodes: int, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readout, "_CPU_BLOCK", 16)
    drawn = torch.Generator().manual_seed(0)
    inputs, weight = (torch.randn(size, 8, generator=drawn) for size in (nodes, tokens))
    which = torch.randint(nodes, (3 * nodes,), generator=drawn).sort().values
    labels = torch.randint(tokens, which.shape, generator=drawn)
    labels[::3] = (inputs @ weight.T).argmax(dim=-1)[which[::3]]  # the likeliest of all blocks
    log_probs, greedy = readout.read_tokens(inputs, weight, which.numpy(), labels.numpy(), Alone(0, 1))
    logits = inputs @ weight.T
    torch.testing.assert_close(log_probs, logits.log_softmax(dim=-1)[which, labels])
    assert (greedy > 0).tolist() == (labels == logits.argmax(dim=-1)[which]).tolist()
    assert greedy[::3].all()


def test_logits_far_apart_do_not_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readout, "_CPU_BLOCK", 2)
    weight = torch.tensor([[300.0], [-300.0], [299.0], [0.0], [-1.0]])
    found, _ = readout.read_tokens(torch.ones(1, 1), weight, np.zeros(5, dtype=np.int64), np.arange(5), Alone(0, 1))
    torch.testing.assert_close(found, weight[:, 0].log_softmax(dim=0))


def test_a_rank_without_nodes_reads_nothing() -> None:
    none = np.zeros(0, dtype=np.int64)
    assert readout.read_tokens(torch.zeros(0, 8), torch.randn(5, 8), none, none, Alone(0, 1)).shape == (2, 0)
