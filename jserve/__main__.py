"""`python -m jserve`: the server."""

import sys

from jserve.cli import run

if __name__ == "__main__":  # and not a worker, which imports this too
    sys.argv[0] = "jserve"  # the program's name, in messages
    run()
