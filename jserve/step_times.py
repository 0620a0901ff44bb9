"""Step times kept from start to start, so that a warm start need not measure again."""

import json
import logging
import pathlib

from jserve_sched.table_predictor import TablePredictor

_LOG = logging.getLogger("jserve")


class StepTimes:
    """A file of what the timed pass found; it is only ever a shortcut."""

    def __init__(self, path: pathlib.Path | None):
        """Touches nothing yet.

        Args:
          path: the file; None keeps nothing.
        """
        self._path = path

    def load(self, predictor: TablePredictor) -> bool:
        """Fills a predictor; returns whether the file has its table's times."""
        if self._path is None:
            return False
        try:
            return predictor.load_json(json.loads(self._path.read_text()))
        except FileNotFoundError:
            return False
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            _LOG.warning("step times of an earlier start are unreadable: %s", error)
            return False

    def save(self, predictor: TablePredictor) -> bool:
        """Writes the file, whole or not at all; returns whether it was written."""
        if self._path is None:
            return False
        draft = self._path.with_suffix(".tmp")
        try:
            draft.write_text(json.dumps(predictor.to_json()))
            draft.replace(self._path)
        except OSError as error:
            _LOG.warning("step times are not saved: %s", error)
            return False
        return True
