"""The byte model as safetensors and as an Orbax checkpoint, either way."""

import jax
import numpy as np
import pytest
import safetensors.numpy

from jserve_models.registry import load_model
from jserve_tools.training.conversion import convert
from tests import TESTS


def leaves(model, **options):
    return load_model(str(model), seed=None, dtype="bfloat16", **options).leaves


def test_either_form_gives_the_weights_of_the_other(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for source, target, form in (
        ("tiny", first, "safetensors"),
        (str(first), second, "orbax"),
    ):
        target.mkdir()
        convert(source, target, form, "bfloat16")
        jax.tree.map(np.testing.assert_array_equal, leaves(target), leaves("tiny"))
    assert not (second / "model.safetensors").exists()
    with pytest.raises(ValueError, match="second is the model's own folder"):
        convert(str(second), second, "safetensors", "bfloat16")


@pytest.mark.parametrize("name", ["qwen3", "llama_tied"])
def test_tensors_have_the_names_of_their_family(tmp_path, name):
    convert(str(TESTS / "golden" / name), tmp_path, "safetensors", "bfloat16")
    paths = [one / "model.safetensors" for one in (TESTS / "golden" / name, tmp_path)]
    found, wanted = map(safetensors.numpy.load_file, paths)
    assert set(found) == set(wanted)
    jax.tree.map(np.testing.assert_array_equal, dict(found), dict(wanted))


def test_what_cannot_be_converted_is_refused(tmp_path):
    with pytest.raises(ValueError, match="model='peer-19m' has no weights of its own"):
        convert("peer-19m", tmp_path, "orbax", "float32")
    folder = TESTS / "golden" / "phi3_short"
    with pytest.raises(ValueError, match="only as orbax"):
        convert(str(folder), tmp_path, "safetensors", "float32")
