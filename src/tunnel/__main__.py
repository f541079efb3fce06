"""``python -m tunnel``: the command ``tunnel``."""

import sys

from tunnel.cli import main

sys.exit(main())
