import numpy as np

from jserve_sched.features import NUM_BLOCKS, NUM_DECODES, NUM_FEATURES, NUM_ROWS
from jserve_tools.predictor_plots import HeldOut, draw_predictor


def test_a_picture_of_few_steps_is_drawn() -> None:
    matrix = np.zeros((3, NUM_FEATURES))
    matrix[:, NUM_DECODES] = 1  # one scenario alone, and programs without a step
    matrix[:, NUM_ROWS] = 2, 4, 4
    matrix[:, NUM_BLOCKS] = 0, 0, 1
    duration_s = np.array([[0.001, 0.002, 0.004], [0.0011, 0.0019, 0.005]])
    median_s = np.median(duration_s, axis=0)
    held_out = HeldOut(
        matrix=matrix,
        duration_s=duration_s,
        linear_s=median_s * 1.5,
        mlp_s=median_s,
        upper_s=median_s * 1.1,
    )
    picture = draw_predictor(held_out, title="three steps")
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 20_000
