"""Infuses facts into a model of the library transformers, with its Trainer.

Run it on what ``kis study run run_scripts/studies/quickstart.yaml`` has prepared; ``python -m
megatron_kis.run_scripts.examples.infuse_trainer`` is the same script where the package was installed:

    python run_scripts/examples/infuse_trainer.py --data <study>/data --output trainer
    torchrun --nproc-per-node 2 run_scripts/examples/infuse_trainer.py --data <study>/data --output trainer

Each fact is shown exactly ``--frequency`` times, whole, with any number of ranks and workers. The trainer counts the
exposures as they pass, and keeps the counts in its checkpoints. Stop it (``--stop-after``) and start it again: it
resumes from the last checkpoint.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.utils.data import Dataset, SequentialSampler
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from megatron_kis.common.ending import status_of_script
from megatron_kis.common.units import whole_quantity
from megatron_kis.data import BackgroundFacts, ExposurePlan, InfusedDataset, InfusedFacts, TokenBudget
from megatron_kis.data.exposure_store import ExposureStore
from megatron_kis.data.general_text import GeneralText
from megatron_kis.data.ledger import Ledger
from megatron_kis.data_tools.tokenizers.registry import load_tokenizer

LEDGER = "ledger.pt"


class Samples(Dataset[dict[str, Any]]):
    """The sequences of a plan as transformers' models take them, each with its number."""

    def __init__(self, dataset: InfusedDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        """Returns the number of sequences."""
        return len(self.dataset)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Returns ``input_ids`` and ``labels``, both [L]: the model shifts the labels itself."""
        sample = self.dataset[number]
        labels = sample["tokens"].clone()
        labels[1:][sample["loss_mask"][:-1] == 0] = -100  # the mask is of shifted labels
        return {"input_ids": sample["tokens"], "labels": labels, "sequence": number}


class InfusedTrainer(Trainer):
    """A trainer that reads the sequences in their order, and counts the exposures in those that it was fed."""

    samples: Samples
    ledger: Ledger

    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        return SequentialSampler(self.samples)

    def training_step(self, model: Any, inputs: dict[str, Any], *more: Any, **others: Any) -> Tensor:
        """Trains on a micro-batch."""
        layouts = [self.samples.dataset.plan[number] for number in inputs.pop("sequence").tolist()]
        self.ledger.observe_many(list(inputs["input_ids"].cpu().numpy()), layouts)
        loss: Tensor = super().training_step(model, inputs, *more, **others)
        return loss

    def counts(self) -> Tensor:
        """Returns the counts of all ranks together."""
        counts = self.ledger.as_tensor().to(self.args.device)
        if dist.is_initialized():
            dist.all_reduce(counts)
        return counts.cpu()


class KeepLedger(TrainerCallback):
    """Writes the counts into every checkpoint, and stops after the step of ``--stop-after``."""

    def __init__(self, trainer: InfusedTrainer, stop_after: int | None) -> None:
        self.trainer, self.stop_after = trainer, stop_after

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Stops."""
        if state.global_step == self.stop_after:
            control.should_save = control.should_training_stop = True
        return control

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Writes."""
        counts = self.trainer.counts()
        if state.is_world_process_zero:
            kept = {"counts": counts, "plan": self.trainer.samples.dataset.plan.fingerprint}
            torch.save(kept, Path(args.output_dir) / f"checkpoint-{state.global_step}" / LEDGER)
        return control


def main() -> int:
    """Trains, and says what every fact received."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="corpus, exposures and tokenizer")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where checkpoints are")
    parser.add_argument("--steps", type=whole_quantity, default=50, help="optimizer steps of the whole run")
    parser.add_argument("--batch", type=whole_quantity, default=8, help="sequences per step, of all ranks together")
    parser.add_argument("--accumulate", type=whole_quantity, default=1, help="micro-batches per step")
    parser.add_argument("--length", type=whole_quantity, default=128, help="tokens per sequence")
    parser.add_argument("--frequency", type=int, default=5, help="exposures of each infused fact")
    parser.add_argument("--background", type=int, default=5, help="exposures of each background fact, at F = 0")
    parser.add_argument("--workers", type=int, default=2, help="processes per rank that read data")
    parser.add_argument("--stop-after", type=whole_quantity, metavar="STEP", help="save there, and end")
    options = parser.parse_args()
    if options.workers < 0:
        parser.error(f"--workers {options.workers}: 0 or more")
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if options.batch % (ranks * options.accumulate):  # or some sequences would be read twice, to fill the last batch
        parser.error(f"--batch {options.batch} cannot be divided by {ranks} ranks * {options.accumulate} micro-batches")

    store = ExposureStore(options.data / "exposures")
    plan = ExposurePlan(
        InfusedFacts(store.lengths("infused"), frequency=options.frequency),
        BackgroundFacts(store.lengths("background"), frequency=options.background, policy="displaced"),
        budget=TokenBudget(options.steps * options.batch * options.length, options.length),
    )
    text = GeneralText(options.data / "corpus", sequence_length=options.length, seed=0)
    config = LlamaConfig(
        vocab_size=load_tokenizer(options.data).vocab_size,
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=options.length,
    )
    settings = TrainingArguments(
        output_dir=str(options.output),
        per_device_train_batch_size=options.batch // ranks // options.accumulate,
        gradient_accumulation_steps=options.accumulate,
        num_train_epochs=1,  # the plan is the whole run
        remove_unused_columns=False,  # the number of each sequence is needed
        dataloader_num_workers=options.workers,
        learning_rate=1e-3,
        logging_steps=10,
        save_steps=10,
        seed=0,
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
        ddp_backend="gloo" if ranks > 1 and not torch.cuda.is_available() else None,
        ddp_find_unused_parameters=False,
    )
    samples = Samples(InfusedDataset(plan, text, store))
    trainer = InfusedTrainer(LlamaForCausalLM(config), settings, train_dataset=samples)
    trainer.samples, trainer.ledger = samples, Ledger(store)
    trainer.add_callback(KeepLedger(trainer, options.stop_after))
    before = get_last_checkpoint(str(options.output)) if options.output.exists() else None
    if before:
        if not (Path(before) / LEDGER).is_file():
            parser.error(
                f"{before}: has no {LEDGER}: saving it was cut off; remove the folder, and resume from another"
            )
        kept = torch.load(Path(before) / LEDGER, weights_only=True)
        if kept["plan"] != plan.fingerprint:
            parser.error(f"{before}: was trained under another plan; choose another output")
        if settings.process_index == 0:  # one rank has the sum of all
            trainer.ledger.load_tensor(kept["counts"])
    trainer.train(resume_from_checkpoint=before)

    trainer.ledger.load_tensor(trainer.counts())
    if settings.process_index == 0:
        for group, received in trainer.ledger.received.items():
            print(f"{len(received)} {group} facts received {received.min()} to {received.max()} whole exposures")
    if dist.is_initialized():
        dist.destroy_process_group()
    return 1 if trainer.state.global_step == options.steps and trainer.ledger.differences(plan) else 0


if __name__ == "__main__":
    sys.exit(status_of_script(main))
