"""Configuration of `jserve-fit-buckets`."""

import dataclasses
import pathlib

from jserve.config import check_range, check_readable, check_writable


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Steps to fit to, limits of the fit, and the file to write.

    Attributes:
      step_log: Step logs of servers with the same limits, earliest first. The rotated
        part FILE.1 beside a log is read too.
      cost_model: Source of step times: any --cost_model of jserve-simulate. [default:
        the times in the log, which a log written by jserve-simulate does not have]
      max_programs: Most programs to compile, at least 2. [default: the number of
        programs of pow2 at the same limits]
      prior_share: Share of the demand, 0 to 0.99, that is spread over buckets of every
        size, so that an unseen load is not padded to the largest.
      output: Bucket file to write.
    """

    step_log: tuple[pathlib.Path, ...] = ()
    cost_model: str | None = None
    max_programs: int | None = None
    prior_share: float = 0.1
    output: pathlib.Path = pathlib.Path("buckets.json")

    def __post_init__(self) -> None:
        if not self.step_log:
            raise ValueError(
                "give step_log: jserve --step_log and jserve-simulate --step_log write "
                "one"
            )
        check_readable("step_log", *self.step_log)
        if self.max_programs is not None and self.max_programs < 2:
            raise ValueError(f"max_programs={self.max_programs} is below 2")
        check_range("prior_share", self.prior_share, 0.0, 0.99)
        check_writable("output", self.output)
        if self.output.is_dir():
            raise ValueError(f"output={self.output} is a folder")
