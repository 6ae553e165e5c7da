"""Infuses facts into Megatron-Core's own GPTDataset, and trains on the result with Megatron-Core alone.

For users with a Megatron training loop of their own: the exposure plan and ``InfusedDataset`` replace the blended
dataset, everything else stays. Run it on what ``kis study run run_scripts/studies/quickstart.yaml`` has prepared:

    python run_scripts/examples/infuse_gpt_dataset.py --data <study>/data --steps 50
    torchrun --nproc-per-node=2 run_scripts/examples/infuse_gpt_dataset.py --data <study>/data --steps 50

Each infused fact is shown exactly ``--frequency`` times, whole, evenly over the run, and each background fact
``--background`` times. Each rank takes its part of every step, and counts the exposures as they pass.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import SimpleNamespace

import torch

from megatron_kis.common.ending import status_of_script
from megatron_kis.common.units import whole_quantity
from megatron_kis.config.ladder import ModelShape
from megatron_kis.config.run import OptimizerConfig
from megatron_kis.config.vocabulary import padded_vocabulary
from megatron_kis.data import BackgroundFacts, ExposurePlan, InfusedDataset, InfusedFacts, TokenBudget
from megatron_kis.data.dataset import MegatronText
from megatron_kis.data.exposure_store import ExposureStore
from megatron_kis.data.ledger import Ledger
from megatron_kis.data_tools.tokenizers.base import Tokenizer
from megatron_kis.data_tools.tokenizers.registry import load_tokenizer
from megatron_kis.distributed.collectives import sum_over_data
from megatron_kis.distributed.device import open_device
from megatron_kis.distributed.groups import close_groups, open_groups
from megatron_kis.distributed.megatron_imports import quiet_megatron
from megatron_kis.model.build import ModelSpec, build_model

with quiet_megatron():
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig


def main() -> int:
    """Builds the datasets, trains, and prints what every fact received."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="corpus, exposures and tokenizer")
    parser.add_argument("--steps", type=whole_quantity, default=50, help="optimizer steps")
    parser.add_argument("--batch", type=whole_quantity, default=8, help="sequences per step")
    parser.add_argument("--length", type=whole_quantity, default=128, help="tokens per sequence")
    parser.add_argument("--frequency", type=int, default=5, help="exposures of each infused fact")
    parser.add_argument("--background", type=int, default=3, help="exposures of each background fact")
    options = parser.parse_args()
    sequences = options.steps * options.batch

    device = open_device()
    layout = open_groups(device)
    tokenizer = load_tokenizer(options.data)

    # 1. Megatron's own dataset of general text, as any Megatron training script builds it.
    base = _gpt_dataset(options.data / "corpus", tokenizer, length=options.length, samples=sequences)

    # 2. The plan of exposures, over that text.
    store = ExposureStore(options.data / "exposures")
    plan = ExposurePlan(
        InfusedFacts(store.lengths("infused"), frequency=options.frequency),
        BackgroundFacts(store.lengths("background"), frequency=options.background, policy="protected"),
        budget=TokenBudget(sequences * options.length, options.length),
    )
    text = MegatronText(base, sequence_length=options.length, sequences=sequences)
    dataset = InfusedDataset(plan, text, store)
    print(f"{sequences} sequences, infusion ratio {plan.infusion_ratio:.4f}")

    # 3. Of each step this rank's part, in order: every sequence is read once. Any Megatron model, any optimizer.
    ranks, share = layout.data_size, options.batch // layout.data_size
    if share * ranks != options.batch:
        parser.error(f"--batch {options.batch} is no multiple of {ranks} ranks")
    firsts = range(layout.data_rank * share, sequences, options.batch)
    parts = [list(range(first, first + share)) for first in firsts]
    shape = ModelShape(layers=2, width=64, heads=4, query_groups=4, ffn_width=176, tied_embeddings=True)
    vocabulary = padded_vocabulary(tokenizer.vocab_size)
    model = build_model(ModelSpec(shape, vocabulary, options.length, layout, device))
    optimizer = torch.optim.AdamW(model.parameters(), lr=OptimizerConfig().learning_rate)
    ledger = Ledger(store)
    loader = torch.utils.data.DataLoader(dataset, batch_sampler=parts)
    for step, (numbers, batch) in enumerate(zip(parts, loader, strict=True)):
        sample = {name: values.to(device.torch_device) for name, values in batch.items()}
        losses = model(sample["tokens"], sample["position_ids"], None, labels=sample["labels"])
        loss = (losses * sample["loss_mask"]).sum() / sample["loss_mask"].sum()
        optimizer.zero_grad()
        loss.backward()
        for parameter in model.parameters():
            assert parameter.grad is not None
            sum_over_data(parameter.grad).div_(ranks)
        optimizer.step()
        ledger.observe_many(list(batch["tokens"].numpy()), [plan[number] for number in numbers])
        if step % 10 == 0 or step + 1 == options.steps:
            print(f"step {step + 1}: loss {loss.item():.3f}")

    # 4. All ranks together received the planned exposures.
    ledger.load_tensor(sum_over_data(ledger.as_tensor().to(device.torch_device)))
    close_groups()
    for group, received in ledger.received.items():
        print(f"{len(received)} {group} facts received {received.min()} to {received.max()} whole exposures")
    return 0 if not ledger.differences(plan) else 1


def _gpt_dataset(prefix: Path, tokenizer: Tokenizer, *, length: int, samples: int) -> GPTDataset:
    eod = tokenizer.eod_id
    config = GPTDatasetConfig(
        random_seed=0,
        sequence_length=length,
        blend=([str(prefix)], None),
        split="1,0,0",
        path_to_cache=str(prefix.parent / "megatron-cache"),
        tokenizer=SimpleNamespace(vocab_size=tokenizer.vocab_size, eod=eod, pad=-1, unique_identifiers={"eod": eod}),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    with quiet_megatron():
        train, _, _ = BlendedMegatronDatasetBuilder(GPTDataset, [samples, 0, 0], lambda: True, config).build()
    return train


if __name__ == "__main__":
    sys.exit(status_of_script(main))
