"""The JSON Schema: what the file says, what it takes and what it refuses."""

import json

import jsonschema
import pytest
from model_facts import FACTS
from models import MODELS, example
from samples import FILES, written

import amct_pytorch as amct
from amct_pytorch.config import QuantConfig, RetrainConfig
from amct_pytorch.config.json_schema import FILE, dumps

SCHEMA = json.loads(FILE.read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def layer(**entry):
    return {"conv2": {"quant_enable": True, **entry}}


def act(**params):
    return layer(activation_quant_params=params)


def wts(**params):
    return layer(weight_quant_params=params)


ADA = {"wts_algo": "ada_quantize"}


def test_the_file_is_what_the_models_say():
    assert FILE.read_text() == dumps(), "run `make schema`"


def test_it_is_a_schema_of_its_dialect():
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_every_key_is_described():
    objects = [SCHEMA, *SCHEMA["$defs"].values()]
    keys = [(key, value) for o in objects for key, value in o["properties"].items()]
    assert len(keys) == 8 + 4 + 7 + 4 + 3 + 7  # globals, layer, ifmr, hfmg, arq, ada
    assert [key for key, value in keys if not value.get("description")] == []


@pytest.mark.parametrize("name", MODELS)
def test_a_generated_configuration_is_valid(tmp_path, name):
    model, batches = example(name)
    path = tmp_path / "config.json"
    amct.create_quant_config(str(path), model, batches[0])
    VALIDATOR.validate(json.loads(path.read_text()))


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("ptq_")])
def test_what_a_sample_stands_for_is_valid(tmp_path, name):
    VALIDATOR.validate(written(name, tmp_path))


VALID = [
    {},
    {"$schema": "schema.json", "version": 1, "joint_quant": False, **layer()},
    {"batch_num": 3, "activation_offset": False, "do_fusion": False},
    {"fakequant_precision_mode": "FORCE_FP16_QUANT"},
    {"skip_fusion_layers": ["conv1", "conv1d"]},
    {"conv2": {}},
    layer(dmq_balancer_param=0.2),
    layer(dmq_balancer_param=0.8),
    act(),
    act(act_algo="ifmr", max_percentile=1, min_percentile=0.6, search_range=[1, 2], search_step=1),
    act(num_of_bins=1024),
    act(act_algo="hfmg"),
    *(act(num_bits=bits) for bits in (4, 8, 16)),
    *(wts(num_bits=bits) for bits in (4, 6, 7, 8)),
    *(wts(**ADA, num_bits=bits) for bits in (4, 6, 7, 8)),
    wts(**ADA, num_iteration=0, reg_param=0.5, warm_start=0.5, beta_range=[3, 1]),
]


@pytest.mark.parametrize("document", VALID, ids=json.dumps)
def test_valid(document):
    VALIDATOR.validate(document)
    QuantConfig.from_document(document, FACTS, "config.json")  # the schema refuses no more than it


INVALID = [
    {"version": 2},
    {"version": "1"},
    {"version": True},
    {"batch_num": 0},
    {"batch_num": True},
    {"batch_num": 1.5},
    {"activation_offset": 1},
    {"do_fusion": "yes"},
    {"fakequant_precision_mode": "FP16"},
    {"skip_fusion_layers": "conv1"},
    {"skip_fusion_layers": [1]},
    {"skip_fusion_layers": ["conv1", "conv1"]},
    {"joint_quant": True},
    {"$schema": 1},
    {"conv2": 1},
    {"conv2": {"quant_enable": 1}},
    layer(quant_enabled=True),
    layer(dmq_balancer_param=1),
    layer(dmq_balancer_param=0.1),
    layer(dmq_balancer_param=0.9),
    layer(dmq_balancer_param=None),
    layer(activation_quant_params=8),
    layer(weight_quant_params=[]),
    layer(num_bits=8),
    act(num_bits=7),
    act(num_bits=True),
    act(num_bits="8"),
    act(max_percentile=0.5),
    act(max_percentile=1.1),
    act(max_percentile="0.9"),
    act(min_percentile=0.5),
    act(search_range=0.7),
    act(search_range=[0.7]),
    act(search_range=[0.7, 1, 1.3]),
    act(search_range=["a", 1]),
    act(search_range=[0, 1]),
    act(search_step=0),
    act(act_algo="kl"),
    act(act_algo=1),
    act(num_of_bins=100),
    act(asymmetric="no"),
    act(asymmetric=None),
    act(act_algo="ifmr", num_of_bins=1024),
    act(act_algo="hfmg", max_percentile=1.0),
    act(num_of_bins=1024, search_step=0.1),
    act(max_percentil=1.0),
    wts(num_bits=5),
    wts(channel_wise=1),
    wts(wts_algo="nuq"),
    wts(reg_param=0.1),
    wts(wts_algo="arq_quantize", reg_param=0.1),
    wts(**ADA, num_bits=5),
    wts(**ADA, reg_param=1),
    wts(**ADA, reg_param="x"),
    wts(**ADA, warm_start=0),
    wts(**ADA, num_iteration=-1),
    wts(**ADA, num_iteration=1.5),
    wts(**ADA, beta_range=[2]),
    wts(**ADA, beta_range=[2, 0]),
]


@pytest.mark.parametrize("document", INVALID, ids=json.dumps)
def test_invalid(document):
    assert not VALIDATOR.is_valid(document)
    with pytest.raises((TypeError, ValueError)):
        QuantConfig.from_document(document, FACTS, "config.json")


# --- "$schema" in a configuration --------------------------------------------------------------


@pytest.mark.parametrize("config", [QuantConfig, RetrainConfig])
def test_the_place_of_the_schema_is_read_and_not_written(config):
    document = json.loads(config.generate(FACTS).dumps())
    with_place = config.from_document({"$schema": "x.json", **document}, FACTS, "config.json")
    assert json.loads(with_place.dumps()) == document


@pytest.mark.parametrize("place", [1, None, {}])
def test_the_place_of_the_schema_is_a_string(place):
    with pytest.raises(TypeError, match=r"config.json: \$schema: expected a string, got"):
        QuantConfig.from_document({"$schema": place}, FACTS, "config.json")
