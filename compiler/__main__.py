"""``python -m svitc``, and ``torchrun … -m svitc``: the command line."""

import sys

from svitc.cli.main import main

sys.exit(main())
