"""What the verbs do with `config_defination`, whatever its format."""

import json

import pytest
import torch
from google.protobuf.text_format import ParseError
from torch import nn

import amct_pytorch as amct

DATA = torch.ones(1, 3, 4, 4)
PTQ = {"q.cfg": "batch_num: 2", "q.yaml": "batch_num: 2", "q.json": '{"batch_num": 2}'}
# A wrong file -> the error of the verb.
WRONG = {
    "q.cfg": ("batch_mum: 2", ParseError),
    "q.yaml": ("batch_mum: 2", ValueError),
    "q.yml": ("batch_num: two", TypeError),
    "q.json": ('{"batch_num": }', json.JSONDecodeError),
    "r.json": ('{"batch_num": 1, "batch_num": 2}', ValueError),
}
VERBS = [amct.create_quant_config, amct.create_quant_retrain_config]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def model():
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())


@pytest.mark.parametrize("verb", VERBS, ids=["ptq", "qat"])
@pytest.mark.parametrize("name", PTQ)
def test_every_format_is_read(folder, model, verb, name):
    (folder / name).write_text(PTQ[name])
    verb("config.json", model, DATA, config_defination=name)
    assert json.loads((folder / "config.json").read_text())["batch_num"] == 2


@pytest.mark.parametrize("verb", VERBS, ids=["ptq", "qat"])
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_leaves_no_configuration(folder, model, verb, name):
    text, error = WRONG[name]
    (folder / name).write_text(text)
    with pytest.raises(error, match=name) as caught:
        verb("config.json", model, DATA, config_defination=name)
    assert type(caught.value) is error
    assert not (folder / "config.json").exists()


@pytest.mark.parametrize("verb", VERBS, ids=["ptq", "qat"])
@pytest.mark.parametrize("name", ["none.cfg", "none.yaml", "none.json"])
def test_a_missing_file_is_named(model, verb, name):
    with pytest.raises(FileNotFoundError, match=name):
        verb("config.json", model, DATA, config_defination=name)


@pytest.mark.parametrize("verb", VERBS, ids=["ptq", "qat"])
def test_the_definition_is_not_written_over(folder, model, verb):
    (folder / "q.yaml").write_text("batch_num: 2")
    with pytest.raises(ValueError, match="config_defination: './q.yaml' is config_file"):
        verb("q.yaml", model, DATA, config_defination="./q.yaml")
    assert (folder / "q.yaml").read_text() == "batch_num: 2"


def test_a_yaml_file_decides_over_the_arguments(folder, model, caplog):
    (folder / "q.yaml").write_text("batch_num: 3")
    amct.create_quant_config("config.json", model, DATA, ["0"], 5, config_defination="q.yaml")
    config = json.loads((folder / "config.json").read_text())
    assert (config["batch_num"], config["0"]["quant_enable"]) == (3, True)
    assert "skip_layers is not used: config_defination q.yaml decides" in caplog.text
