"""``python -m megatron_kis`` is ``kis``."""

import sys

from megatron_kis.cli import main

sys.exit(main())
