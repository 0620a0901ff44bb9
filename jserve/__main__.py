"""`python -m jserve`: the server."""

from jserve.cli import run

run()
