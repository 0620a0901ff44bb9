"""A `jax.profiler` trace of some steps, for XProf, TensorBoard or Perfetto."""

import contextlib
import logging
import pathlib

import jax

_LOG = logging.getLogger("jserve")


class Profiler:
    """Traces a range of steps, each annotated with its number; used by one thread.

    No step is planned while a trace is started or written. If it cannot be started
    there is one warning, and steps are served without it.
    """

    def __init__(self, steps: range, folder: pathlib.Path):
        """Traces nothing yet, and nothing at all if there are no steps."""
        self._steps = steps
        self._folder = folder
        self._is_tracing = False

    def step(self, step_id: int) -> contextlib.AbstractContextManager[object]:
        """Returns the annotation of a step; starts the trace before the first one."""
        if step_id not in self._steps:
            return contextlib.nullcontext()
        if not self._is_tracing:
            try:
                jax.profiler.start_trace(self._folder)
            except (OSError, RuntimeError) as error:
                self._steps = range(0)
                _LOG.warning("steps are not profiled: %s", error)
                return contextlib.nullcontext()
            self._is_tracing = True
            last = self._steps[-1]
            _LOG.info("profiling steps %d to %d into %s", step_id, last, self._folder)
        return jax.profiler.StepTraceAnnotation("step", step_num=step_id)

    def end_step(self, step_id: int) -> None:
        """Writes the trace once its last step has ended."""
        if self._is_tracing and step_id >= self._steps[-1]:
            self.stop()

    def stop(self) -> None:
        """Writes the trace of the steps until now, if one was started."""
        if not self._is_tracing:
            return
        self._is_tracing, self._steps = False, range(0)
        try:
            jax.profiler.stop_trace()
        except (OSError, RuntimeError) as error:
            _LOG.warning("the profile of steps is lost: %s", error)
            return
        written = sorted(self._folder.glob("plugins/profile/*"))[-1:]
        _LOG.info("the profile of steps is in %s", *written or [self._folder])
