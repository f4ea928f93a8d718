"""python -m bitm.cli: the command line `bitm`."""

import sys

from bitm.cli import main

sys.exit(main())
