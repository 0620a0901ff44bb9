import pathlib

import jax.numpy as jnp
import pytest

from jserve_tools.predictor_training import Progress
from jserve_tools.training_state import TrainingState


def at_epoch(epoch: int) -> Progress:
    params = [(jnp.full((2, 2), float(epoch)), jnp.zeros(2))]
    return Progress(
        params=params,
        optimiser=(jnp.array(epoch),),
        epoch=jnp.array(epoch, jnp.int32),
        best_params=params,
        best_loss=jnp.array(jnp.inf),
        best_epoch=jnp.array(epoch, jnp.int32),
        losses=jnp.full((3, 2), jnp.nan),
    )


def test_the_latest_state_is_kept(tmp_path: pathlib.Path) -> None:
    state = TrainingState(tmp_path / "new", "abc")
    assert state.restore(at_epoch(0)) is None
    for epoch in (9, 10, 10):
        state.save(at_epoch(epoch))
    found = state.restore(at_epoch(0))
    assert found is not None
    assert int(found.epoch) == 10
    assert found.epoch.dtype == jnp.int32
    assert float(found.params[0][0][1, 1]) == 10.0
    assert bool(jnp.isinf(found.best_loss)) and bool(jnp.isnan(found.losses).all())
    names = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert names == ["10", "digest"]
    state.clear()
    assert state.restore(at_epoch(0)) is None


def test_another_training_is_refused(tmp_path: pathlib.Path) -> None:
    TrainingState(tmp_path, "abc").save(at_epoch(3))
    with pytest.raises(ValueError, match="holds training abc, with other samples"):
        TrainingState(tmp_path, "xyz").restore(at_epoch(0))


def test_a_damaged_state_is_refused(tmp_path: pathlib.Path) -> None:
    state = TrainingState(tmp_path, "abc")
    state.save(at_epoch(3))
    for path in (tmp_path / "3").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(ValueError, match="cannot be read"):
        state.restore(at_epoch(0))
