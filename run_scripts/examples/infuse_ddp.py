"""Infuses facts into a plain PyTorch training loop: DistributedDataParallel, DataLoader workers, checkpoints.

Run it on what ``kis study run run_scripts/studies/quickstart.yaml`` has prepared; ``python -m
megatron_kis.run_scripts.examples.infuse_ddp`` is the same script where the package was installed:

    torchrun --nproc-per-node 2 run_scripts/examples/infuse_ddp.py --data <study>/data --output ddp

Each fact is shown exactly ``--frequency`` times, whole, with any number of ranks and workers. The loop counts the
exposures as they pass. Stop it (``--stop-after``) and start it again, also with another number of ranks: it resumes at
the first sequence that was not trained on, with the counts so far.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from megatron_kis.common.ending import status_of_script
from megatron_kis.common.units import whole_quantity
from megatron_kis.data import BackgroundFacts, ExposurePlan, InfusedDataset, InfusedFacts, TokenBudget
from megatron_kis.data.exposure_store import ExposureStore
from megatron_kis.data.general_text import GeneralText
from megatron_kis.data.ledger import Ledger
from megatron_kis.data_tools.tokenizers.registry import load_tokenizer


class Model(nn.Module):
    """A small causal transformer: tokens [batch, L] to logits [batch, L, vocabulary]."""

    def __init__(self, vocabulary: int, length: int, width: int = 64) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Returns the logits."""
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1], device=tokens.device)
        hidden = self.tokens(tokens) + self.positions(positions)
        logits: Tensor = self.head(self.layers(hidden, mask=mask, is_causal=True))
        return logits


def main() -> int:
    """Trains, and says what every fact received."""
    parser = _parser()
    options = _options(parser)
    device = _join()
    rank, ranks = dist.get_rank(), dist.get_world_size()
    if options.batch % ranks:
        parser.error(f"--batch {options.batch} cannot be divided by {ranks} ranks")
    torch.manual_seed(0)

    # 1. The plan of the whole run, the same on every rank.
    store = ExposureStore(options.data / "exposures")
    plan = _plan(options, store)
    text = GeneralText(options.data / "corpus", sequence_length=options.length, seed=0)
    dataset = InfusedDataset(plan, text, store)

    # 2. Model and optimizer; where a run resumes, its counts too. One rank has the sum of all.
    model = Model(load_tokenizer(options.data).vocab_size, options.length).to(device)
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    ledger, done = Ledger(store), 0
    checkpoint = options.output / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location=device)
        if state["plan"] != plan.fingerprint:
            parser.error(f"{checkpoint} is of another plan; choose another --output")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["step"]
        if rank == 0:
            ledger.load_tensor(state["ledger"])

    # 3. Every sequence number is read exactly once: of each step's numbers each rank takes its part.
    last = max(done, min(options.stop_after or options.steps, options.steps))
    part = options.batch // ranks
    firsts = [step * options.batch + rank * part for step in range(done, last)]
    numbers = [list(range(first, first + part)) for first in firsts]
    loader = DataLoader(dataset, batch_sampler=numbers, num_workers=options.workers)
    for step, (mine, batch) in enumerate(zip(numbers, loader, strict=True), start=done + 1):
        sample = {name: values.to(device) for name, values in batch.items()}
        loss = _loss(parallel(sample["tokens"], sample["position_ids"]), sample)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ledger.observe_many(list(batch["tokens"].numpy()), [plan[number] for number in mine])
        if rank == 0 and (step % 10 == 0 or step == last):
            print(f"step {step}: loss {loss.item():.3f}")

    # 4. The exposures of all ranks together, compared with the plan if the run is complete.
    counts = ledger.as_tensor().to(device)
    dist.all_reduce(counts)
    ledger.load_tensor(counts)
    if rank == 0:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "ledger": counts.cpu()}
        _save({**state, "step": last, "plan": plan.fingerprint}, checkpoint)
    dist.destroy_process_group()
    if rank == 0:
        for group, received in ledger.received.items():
            print(f"{len(received)} {group} facts received {received.min()} to {received.max()} whole exposures")
    return 1 if last == options.steps and ledger.differences(plan) else 0


def _join() -> torch.device:
    """Joins the other ranks, and returns the device of this one."""
    if not torch.cuda.is_available():
        dist.init_process_group("gloo")
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)  # or every rank also takes memory of the first GPU
    dist.init_process_group("nccl")
    return device


def _plan(options: argparse.Namespace, store: ExposureStore) -> ExposurePlan:
    return ExposurePlan(
        InfusedFacts(store.lengths("infused"), frequency=options.frequency),
        BackgroundFacts(store.lengths("background"), frequency=options.background, policy="displaced"),
        budget=TokenBudget(options.steps * options.batch * options.length, options.length),
    )


def _loss(logits: Tensor, sample: dict[str, Tensor]) -> Tensor:
    """Returns the mean loss of the labels that count: what follows a cut of the text, say, does not."""
    losses = cross_entropy(logits.flatten(0, 1), sample["labels"].flatten(), reduction="none")
    mask = sample["loss_mask"].flatten()
    return (losses * mask).sum() / mask.sum()


def _save(state: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path.with_suffix(".partial"))
    path.with_suffix(".partial").replace(path)


def _options(parser: argparse.ArgumentParser) -> argparse.Namespace:
    options = parser.parse_args()
    if options.workers < 0:
        parser.error(f"--workers {options.workers}: 0 or more")
    if "LOCAL_RANK" not in os.environ:
        parser.error("start it with torchrun, also for one process")
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="corpus, exposures and tokenizer")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where checkpoint.pt is")
    parser.add_argument("--steps", type=whole_quantity, default=50, help="optimizer steps of the whole run")
    parser.add_argument("--batch", type=whole_quantity, default=8, help="sequences per step, of all ranks together")
    parser.add_argument("--length", type=whole_quantity, default=128, help="tokens per sequence")
    parser.add_argument("--frequency", type=int, default=5, help="exposures of each infused fact")
    parser.add_argument("--background", type=int, default=5, help="exposures of each background fact, at F = 0")
    parser.add_argument("--workers", type=int, default=2, help="processes per rank that read data")
    parser.add_argument("--stop-after", type=whole_quantity, metavar="STEP", help="save there, and end")
    return parser


if __name__ == "__main__":
    sys.exit(status_of_script(main))
