"""Step times in a file, so that a later start need not measure them again."""

import json
import logging
import pathlib

from jserve_sched.timing.table import TablePredictor

_LOG = logging.getLogger("jserve")


def load_step_times(path: pathlib.Path, predictor: TablePredictor) -> bool:
    """Fills a predictor; returns False if the file has no times for its table."""
    try:
        return predictor.load_json(json.loads(path.read_text()))
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        _LOG.warning("step times of an earlier start are unreadable: %s", error)
        return False


def save_step_times(path: pathlib.Path, predictor: TablePredictor) -> bool:
    """Writes the file atomically; returns whether that succeeded."""
    draft = path.with_suffix(".tmp")
    try:
        draft.write_text(json.dumps(predictor.to_json()))
        draft.replace(path)
    except OSError as error:
        _LOG.warning("step times are not saved: %s", error)
        return False
    return True
