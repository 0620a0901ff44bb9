import json
import random

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from jserve.text.tokenizer import BYTE_CONTROL_TOKENS, ByteTokenizer, load_tokenizer
from tests import ROOT

TEXT = "Héllo wörld! 你好, 世界. 😀 The quick brown fox.\n"
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}"
    "{{ raise_exception('no system prompts') }}{% endif %}"
    "[{{ m['role'] }}] {{ m['content'] | trim }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture
def folder(tmp_path):
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<s>", "</s>", "<|turn|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    settings = {
        "bos_token": "<s>",
        "eos_token": {"content": "</s>"},
        "chat_template": TEMPLATE,
    }
    write(tmp_path / "tokenizer_config.json", settings)
    write(tmp_path / "generation_config.json", {"eos_token_id": [1, 2]})
    return tmp_path


def write(path, value):
    path.write_text(json.dumps(value))


def stream(tokenizer, prompt, tokens):
    decoder = tokenizer.detokenizer(prompt)
    return "".join([decoder.step(one) for one in tokens]) + decoder.finish()


def test_bytes_round_trip():
    tokenizer = ByteTokenizer()
    assert tokenizer.encode("hé") == [104, 195, 169]
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert stream(tokenizer, [], tokenizer.encode(TEXT)) == TEXT


def test_bytes_that_are_no_text():
    tokenizer = ByteTokenizer()
    decoder = tokenizer.detokenizer([])
    steps = [decoder.step(one) for one in (0xE2, 0x82, 0x41, 257, 300, 31_999, 0xC3)]
    assert steps == ["", "", "\ufffdA", "", "\ufffd", "\ufffd", ""]
    assert decoder.finish() == "\ufffd"
    assert decoder.finish() == ""


def test_the_bytes_of_tokens_are_the_text(folder):
    metaspace = tokenizers.Tokenizer(models.BPE(byte_fallback=True))
    metaspace.pre_tokenizer = pre_tokenizers.Metaspace()
    metaspace.decoder = decoders.Sequence(
        [
            *(decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()),
            decoders.Strip(" ", left=1),
        ]
    )
    hexes = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["</s>", *hexes], show_progress=False
    )
    metaspace.train_from_iterator(["The quick brown fox a"] * 3, trainer)
    tokenizer = load_tokenizer(folder)
    assert "</s>" in tokenizer.special_texts()
    for text in (TEXT, " the  end"):
        tokens = tokenizer.encode_part(text)
        assert b"".join(map(tokenizer.token_bytes, tokens)) == text.encode()
    metaspace.save(str(folder / "tokenizer.json"))
    tokenizer = load_tokenizer(folder)
    tokens = tokenizer.encode_part("quick é")
    assert b"".join(map(tokenizer.token_bytes, tokens)) == " quick é".encode()


def test_text_never_becomes_a_control_token():
    tokenizer = ByteTokenizer()
    nasty = ["<|end|>", "<\0|end|>", "<", "\0", "\0\0<|<|eos|>\0", "{{ 7 * 7 }}"]
    for content in nasty:
        assert max(tokenizer.encode(content)) < 256
        tokens = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        bos, _, _, user, assistant, end = BYTE_CONTROL_TOKENS.values()
        assert tokens == [bos, user, *content.encode(), end, assistant]


def test_the_folder_for_other_clients_has_the_same_ids():
    own = ByteTokenizer()
    other = load_tokenizer(ROOT / "jserve/text/byte_tokenizer")
    every_byte_of_text = "".join(map(chr, range(0x250))) + "\ud7ff\U000fffff"
    for text in ("", "\n", " a  b ", TEXT, every_byte_of_text):
        assert other.encode(text) == own.encode(text)
        assert other.decode(own.encode(text)) == text
    turns = [{"role": "system", "content": "x"}, {"role": "user", "content": "é\n"}]
    chats = (
        one.apply_chat_template(turns, add_generation_prompt=True)
        for one in (own, other)
    )
    assert next(chats) == next(chats)


def test_a_folder_streams_what_it_decodes(folder):
    tokenizer = load_tokenizer(folder)
    tokens = tokenizer.encode(TEXT)
    for cut in range(1, len(tokens)):
        head, tail = tokens[:cut], tokens[cut:]
        shown = stream(tokenizer, head, tail)
        if "\ufffd" not in tokenizer.decode(head):
            assert shown == TEXT.removeprefix(tokenizer.decode(head))


def test_a_folder_streams_noise(folder):
    tokenizer = load_tokenizer(folder)
    generator = random.Random(0)
    for _ in range(50):
        tokens = [generator.randrange(330) for _ in range(40)]
        assert stream(tokenizer, [], tokens) == tokenizer.decode(tokens)


@pytest.fixture
def byte_fallback_folder(tmp_path):
    """A folder laid out as Llama 2's: words, and a token for each byte."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words += ["▁", "▁the", "the", "a", "é", "世"]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>")
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(words[:3])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_byte_fallback_goes_on_after_bytes_that_are_no_text(byte_fallback_folder):
    tokenizer = load_tokenizer(byte_fallback_folder)
    h, cut = 3 + ord("H"), 3 + 0x80
    decoder = tokenizer.detokenizer([])
    tokens = (h, cut, cut, 260, 260, cut, 3 + 0xC3, 3 + 0xA9, 3 + ord("H"), 264)
    steps = [decoder.step(one) for one in tokens]
    assert steps[:5] == ["H", "", "", "\ufffd\ufffd the", " the"]
    assert "".join(steps[5:]) == "\ufffd" * 4 + "世"
    assert decoder.finish() == ""


def test_byte_fallback_streams_noise(byte_fallback_folder):
    tokenizer = load_tokenizer(byte_fallback_folder)
    generator = random.Random(0)
    num_restarted = 0
    for _ in range(200):
        tokens = [generator.randrange(265) for _ in range(60)]
        prompt, tokens = tokens[:6], tokens[6:]
        shown = stream(tokenizer, prompt, tokens)
        whole = tokenizer.decode(tokens)
        num_restarted += shown != whole
        # Text other than bytes is shown once, in order; so are the spaces between.
        words = "the", "é", "世"
        assert [shown.count(one) for one in words] == [
            whole.count(one) for one in words
        ]
    assert num_restarted > 50


def test_a_folders_chat_template(folder):
    tokenizer = load_tokenizer(folder)
    turns = [{"role": "user", "content": " hi "}]
    tokens = tokenizer.apply_chat_template(turns, add_generation_prompt=True)
    assert (tokens[0], tokens.count(0), tokens.count(1)) == (0, 1, 1)
    assert tokenizer.decode(tokens) == "[user] hi[assistant]"
    with pytest.raises(ValueError, match="no system prompts"):
        tokenizer.apply_chat_template(
            [{"role": "system", "content": "x"}], add_generation_prompt=True
        )


def test_where_a_chat_template_may_stand(folder):
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    turns = [{"role": "user", "content": "hi"}]

    def render():
        tokenizer = load_tokenizer(folder)
        tokens = tokenizer.apply_chat_template(turns, add_generation_prompt=True)
        return tokenizer.decode(tokens)

    assert render() == "hi!"
    (folder / "chat_template.jinja").unlink()
    rows = [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]
    write(folder / "tokenizer_config.json", {"chat_template": rows})
    assert render() == "d"
    write(folder / "tokenizer_config.json", {})
    with pytest.raises(ValueError, match="no chat template"):
        render()


def test_a_template_cannot_leave_its_sandbox(folder):
    (folder / "chat_template.jinja").write_text(
        "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    )
    with pytest.raises(ValueError, match="unsafe"):
        load_tokenizer(folder).apply_chat_template([], add_generation_prompt=True)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("tokenizer.json", None, "no tokenizer.json"),
        ("tokenizer.json", "{}", "is not a tokenizer"),
        ("tokenizer_config.json", "{", "is not JSON"),
        ("tokenizer_config.json", "[]", "not a JSON object"),
        ("chat_template.jinja", "{% if %}", "does not compile"),
    ],
)
def test_a_broken_folder(folder, name, text, words):
    if text is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(text)
    with pytest.raises(ValueError, match=words):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("ends", "vocab_size", "message"),
    [
        ([1, 400], 400, r"has the end token 400, and config.json has vocab_size=400"),
        (1, 200, r"has the token \d+, and config.json has vocab_size=200"),
    ],
)
def test_a_tokenizer_larger_than_its_model_is_refused(
    folder, ends, vocab_size, message
):
    write(folder / "config.json", {"vocab_size": vocab_size})
    write(folder / "generation_config.json", {"eos_token_id": ends})
    with pytest.raises(ValueError, match=message):
        load_tokenizer(folder)
