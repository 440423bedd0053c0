"""`python -m fla_mesa` is `fla-mesa`."""

import sys

from fla_mesa.cli import main

sys.exit(main())
