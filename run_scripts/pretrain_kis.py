"""Megatron-LM's ``pretrain()`` of a GPT under an exposure plan; with all of Megatron-LM's arguments.

    torchrun --nproc-per-node=8 -m megatron_kis.run_scripts.pretrain_kis --kis-run RUN.yaml --bf16 ...

``docs/how-to/megatron-lm.md`` describes the arguments, what is written, and the few lines for a script of your own.
"""

from __future__ import annotations

import sys

from megatron_kis.common.ending import status_of_script
from megatron_kis.common.errors import InputError


def main() -> int:
    """Trains, and returns the exit status."""
    return status_of_script(_pretrain)


def _pretrain() -> int:
    from megatron_kis.megatron_lm.command_line import command_line, in_one_line, script_arguments
    from megatron_kis.megatron_lm.gpt import forward_step, gpt_datasets, use_compiled_helpers

    sys.argv[1:] = command_line(sys.argv[1:])

    try:
        from megatron.core.enums import ModelType
        from megatron.training import pretrain
        from megatron.training.argument_utils import gpt_config_from_args, pretrain_cfg_container_from_args
        from megatron.training.arguments import parse_and_validate_args
    except ImportError as error:
        remedy = "use it with Python 3.12, or the lines for a script of your own in docs/how-to/megatron-lm.md"
        problem = f"this script needs megatron.training of megatron-core 0.19 ({error})"
        raise InputError(problem, remedy=remedy) from error

    from megatron_kis.megatron_lm import infused
    from megatron_kis.megatron_lm.provider import check

    use_compiled_helpers()
    with in_one_line():
        args = parse_and_validate_args(extra_args_provider=script_arguments)
    check(args)
    with in_one_line():
        config = pretrain_cfg_container_from_args(args, gpt_config_from_args(args))
    pretrain(config, infused(gpt_datasets), ModelType.encoder_or_decoder, forward_step)
    return 0


if __name__ == "__main__":
    sys.exit(main())
