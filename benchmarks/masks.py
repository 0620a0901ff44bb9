"""Times masks, and counts forced tokens, on a vocabulary of 49,152 tokens.

    python -m benchmarks.masks

The vocabulary is trained (byte-level BPE) on the standard library of Python. Answers to
the schemas of the tests are drawn with a weight of 1 / (id + 1) a token, as common ones
have low ids. A token is forced if the grammar allows no other text, by llguidance's
`compute_ff_tokens`: computed as part of a chunk, it would save a step.
"""

import json
import pathlib
import sysconfig
import tempfile
import time

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from jserve.text.constraints import Constraint, Constraints, fill_masks
from jserve.text.tokenizer import Tokenizer, load_tokenizer
from tests.json_schemas import draw_schema

VOCAB_SIZE = 49_152
NUM_SCHEMAS = 200
MOST_TOKENS = 512
END = "<|end|>"


def train() -> Tokenizer:
    """Returns the tokenizer."""
    paths = sorted(pathlib.Path(sysconfig.get_path("stdlib")).glob("*/*.py"))
    built = tokenizers.Tokenizer(models.BPE())
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    built.train_from_iterator(
        (one.read_text(errors="replace") for one in paths), trainer
    )
    with tempfile.TemporaryDirectory() as folder:
        where = pathlib.Path(folder)
        built.save(str(where / "tokenizer.json"))
        names = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END}
        (where / "tokenizer_config.json").write_text(json.dumps(names))
        (where / "config.json").write_text('{"eos_token_id": 0}')
        return load_tokenizer(where)


def draw(
    constraint: Constraint, rng: np.random.Generator, mask_s: list[float]
) -> tuple[int, int]:
    """Draws an answer; returns its tokens, and how many of them were forced."""
    matcher = constraint.matcher
    masks = np.full((1, VOCAB_SIZE // 32), -1, np.int32)
    weights = 1.0 / (np.arange(VOCAB_SIZE) + 1.0)
    num_tokens = num_forced = 0
    while num_tokens < MOST_TOKENS and not matcher.is_stopped():
        for token in matcher.compute_ff_tokens():
            matcher.consume_token(token)
            num_tokens, num_forced = num_tokens + 1, num_forced + 1
        start_s = time.perf_counter()
        fill_masks([(0, constraint)], masks)
        mask_s.append(time.perf_counter() - start_s)
        bits = np.unpackbits(masks.view(np.uint8), bitorder="little")
        shares = np.cumsum(weights * bits)
        token = int(np.searchsorted(shares, rng.random() * shares[-1], side="right"))
        constraint.accept(token)
        num_tokens += 1
    return num_tokens, num_forced


def main() -> None:
    """Prints the figures."""
    tokenizer = train()
    constraints = Constraints(tokenizer, VOCAB_SIZE)
    constraints.make("json", {})  # the first one reads the vocabulary
    rng = np.random.default_rng(0)
    made_s: list[float] = []
    mask_s: list[float] = []
    counts = []
    for seed in range(NUM_SCHEMAS):
        start_s = time.perf_counter()
        constraint = constraints.make("json", draw_schema(seed))
        made_s.append(time.perf_counter() - start_s)
        counts.append(draw(constraint, rng, mask_s))
    tokens, forced = np.sum(counts, axis=0).tolist()
    for name, values in (("grammar", made_s), ("mask", mask_s)):
        p50, p99 = np.percentile(np.array(values) * 1e6, (50, 99))
        print(f"{name}: {len(values)}, p50 {p50:.0f} us, p99 {p99:.0f} us")
    print(f"tokens: {tokens}, forced {forced} ({forced / tokens:.1%})")
    print(f"answers with a forced token: {sum(one > 0 for _, one in counts)}")


if __name__ == "__main__":
    main()
