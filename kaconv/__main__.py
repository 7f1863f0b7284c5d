"""`python -m kaconv` is the same as `kaconv`."""

import sys

from kaconv.cli import main

sys.exit(main())
