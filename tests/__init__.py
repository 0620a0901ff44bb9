"""Tests of jserve, and what they share."""

import pathlib

TESTS = pathlib.Path(__file__).parent
ROOT = TESTS.parent
