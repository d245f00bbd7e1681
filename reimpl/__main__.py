"""`python -m reimpl` is the command `reimpl`."""

import sys

from reimpl.cli import main

sys.exit(main())
