"""What the paper (arXiv 2504.14966) claims, as far as it could be read.

Its tables, models, machines, batch sizes and objectives could not; the two maxima are
from its abstract and need not come from one experiment.
"""

ATTAINMENT_RATIO = 5.0  # "up to", against vLLM and LMDeploy
LATENCY_CHANGE = -0.316  # of the mean latency, against the same
