"""What requests get from the model's folder: templates, sampling, and its name."""

import json
import pathlib
import shutil

import pytest

from jserve.config import EngineConfig
from jserve.text.tokenizer import load_tokenizer
from tests import TESTS
from tests.fake_loop import FakeLoop
from tests.fake_server import serve_fake

USER = {"role": "user", "content": " hi "}
SAMPLING = {"temperature": 0.5, "top_k": 20, "top_p": 0.9, "eos_token_id": [5, 7]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder: pathlib.Path = tmp_path_factory.mktemp("folders") / "named"
    shutil.copytree(TESTS / "golden" / "chats" / "named", folder)
    (folder / "generation_config.json").write_text(json.dumps(SAMPLING))
    return folder


@pytest.fixture(scope="module")
def served(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jserve.server.workers._NUM_WORKERS", 1)
        loop = FakeLoop(config=EngineConfig(model=str(folder)))
        loop.vocab_size = 1000
        with serve_fake(loop, tokenizer=load_tokenizer(folder)) as served:
            yield served


def test_a_chat_says_what_its_template_gets(served, folder):
    tokenizer = load_tokenizer(folder)
    partial = [USER, {"role": "assistant", "content": "It is"}]
    documents = [{"text": "one"}]
    for fields, options in (
        (
            {"messages": partial, "continue_final_message": True},
            {"messages": partial, "continue_final_message": True},
        ),
        (
            {"messages": [USER], "documents": documents, "chat_template": "rag"},
            {"messages": [USER], "documents": documents, "name": "rag"},
        ),
    ):
        assert served.chat(**fields, max_tokens=1).status == 200
        wanted = tokenizer.apply_chat_template(**options)
        assert served.loop.seen[-1].prompt_tokens.tolist() == wanted


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"chat_template": "{{ 1 }}"}, "chat_template"),
        ({"documents": ["one"]}, "documents.0"),
        (
            {"continue_final_message": True, "add_generation_prompt": True},
            "continue_final_message",
        ),
    ],
)
def test_what_a_template_cannot_get_is_refused(served, fields, param):
    answer = served.chat(messages=[USER], **fields)
    assert (answer.status, answer.error["param"]) == (400, param)


def test_the_folder_samples_for_requests_that_name_nothing(served, folder):
    served.complete(prompt=[1], max_tokens=1)
    request = served.loop.seen[-1]
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.5, 20, 0.9)
    assert {5, 7} < request.stop_token_ids
    served.complete(prompt=[1], max_tokens=1, temperature=0, top_k=-1)
    sampling = served.loop.seen[-1].sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0, 0, 0.9)
    without = load_tokenizer(folder, generation_config="none")
    assert not without.sampling and not {5, 7} & without.eos_token_ids
    (folder / "generation_config.json").write_text(json.dumps({"top_p": 2}))
    with pytest.raises(ValueError, match=r"generation_config.json: top_p=2 is not in"):
        load_tokenizer(folder)


def test_clients_may_write_the_model_as_the_operator_did(served, folder):
    for name in (str(folder), "fake"):
        answer = served.complete(model=name, prompt=[1], max_tokens=1)
        assert (answer.status, answer.json()["model"]) == (200, "fake")
    assert served.complete(model=folder.name, prompt=[1]).status == 404
