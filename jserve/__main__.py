"""`python -m jserve`: the server."""

import sys

from jserve.cli import run

sys.argv[0] = "jserve"  # the program's name, in messages
run()
