"""``python -m megatron_kis`` is ``kis``."""

import sys

from megatron_kis.cli.main import main

sys.exit(main())
