"""What bad input gets: the type of the error, its words, and that nothing is lost."""

import json
import logging
import os
import re
import stat
from pathlib import Path

import pytest
import torch
from models import example
from ptq_flow import ptq
from torch import nn

import amct_pytorch as amct


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3)).eval()


X = torch.randn(2, 1, 8, 8)


class Files:
    def __init__(self, folder):
        self.folder = folder
        self.config, self.modified, self.record, self.out = (
            str(folder / name) for name in ("config.json", "modified.onnx", "record.txt", "out")
        )

    def create(self, model, data=X, **options):
        amct.create_quant_config(self.config, model, data, **options)

    def quantize(self, model, data=X, **options):
        return amct.quantize_model(self.config, self.modified, self.record, model, data, **options)

    def save(self):
        amct.save_model(self.modified, self.record, self.out)

    def edit(self, change):
        config = json.loads(Path(self.config).read_text())
        change(config)
        Path(self.config).write_text(json.dumps(config))

    def content(self):
        return {p.name: p.read_bytes() for p in self.folder.iterdir()}


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"skip_layers": "0"}, "skip_layers: expected list or None, got str"),
        ({"skip_layers": [0]}, "skip_layers"),
        ({"batch_num": 1.0}, "batch_num: expected int, got float"),
        ({"batch_num": True}, "batch_num: expected int, got bool"),
        ({"activation_offset": 1}, "activation_offset: expected bool, got int"),
        ({"config_defination": 1}, "config_defination: expected str or None, got int"),
        ({"opset_version": "13"}, "opset_version: expected an int, got str"),
    ],
    ids=str,
)
def test_wrong_types_of_create_quant_config(files, model, options, text):
    with pytest.raises(TypeError, match=text):
        files.create(model, **options)
    assert files.content() == {}


def test_model_that_is_no_module(files):
    with pytest.raises(TypeError, match="model: expected Module, got function"):
        files.create(lambda x: x)


def test_config_file_that_is_no_str(files, model):
    with pytest.raises(TypeError, match="config_file: expected a str"):
        amct.create_quant_config(3, model, X)


@pytest.mark.parametrize("data", [[X], {"x": X}, None], ids=["list", "dict", "None"])
def test_input_data_of_a_wrong_type(files, model, data):
    with pytest.raises(RuntimeError, match=r"input_data: expected a torch\.Tensor or a tuple"):
        files.create(model, data)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"input_names": "x"}, TypeError, "input_names"),
        ({"input_names": [1]}, RuntimeError, "input_names"),
        ({"output_names": (1,)}, TypeError, "output_names"),
        ({"dynamic_axes": [0]}, TypeError, "dynamic_axes"),
        ({"dynamic_axes": {"x": {-1: "N"}}}, RuntimeError, "dynamic_axes"),
        ({"opset_version": 9}, ValueError, "opset_version: expected 11 to 23, got 9"),
    ],
    ids=str,
)
def test_wrong_options_of_quantize_model(files, model, options, error, text):
    files.create(model)
    before = files.content()
    with pytest.raises(error, match=text):
        files.quantize(model, **options)
    assert files.content() == before


def test_a_processed_model_is_refused_by_every_verb(files, model):
    files.create(model)
    calibrated = files.quantize(model)
    before = files.content()
    for verb in (files.create, files.quantize):
        with pytest.raises(RuntimeError, match="already processed.*0: CalibratedLayer"):
            verb(calibrated)
    assert files.content() == before


def test_a_bare_layer_is_told_to_be_wrapped(files):
    with pytest.raises(RuntimeError, match=r"Conv2d layer.*torch\.nn\.Sequential\(model\)"):
        files.create(nn.Conv2d(1, 1, 3))


def test_no_quantizable_layer(files):
    with pytest.raises(ValueError, match="no .*layer"):
        files.create(nn.Sequential(nn.ReLU()))


def test_every_layer_skipped(files, model):
    with pytest.raises(ValueError, match="skip"):
        files.create(model, skip_layers=["0", "3"])


@pytest.mark.parametrize(
    ("skip", "text"),
    [
        (["fc"], "fc"),
        (["1"], "ReLU"),
        (["0", "0"], "0"),
    ],
    ids=["unknown", "not quantizable", "repeated"],
)
def test_bad_skip_layers(files, model, skip, text):
    with pytest.raises(ValueError, match=text):
        files.create(model, skip_layers=skip)


def test_a_layer_named_like_a_global_key(files):
    model = nn.Sequential()
    model.add_module("version", nn.Linear(2, 2))
    with pytest.raises(ValueError, match="version"):
        files.create(model, torch.randn(1, 2))


@pytest.mark.parametrize("batch_num", [0, -1])
def test_batch_num_below_one(files, model, batch_num):
    with pytest.raises(ValueError, match=f"batch_num.*{batch_num}"):
        files.create(model, batch_num=batch_num)


def test_missing_simplified_configuration(files, model):
    with pytest.raises(FileNotFoundError, match=re.escape("quant.cfg")):
        files.create(model, config_defination=str(files.folder / "quant.cfg"))


@pytest.mark.parametrize("name", ["", "folder/"], ids=["empty", "folder"])
def test_config_file_without_a_name(model, name):
    with pytest.raises(IsADirectoryError, match="config_file"):
        amct.create_quant_config(name, model, X)
    with pytest.raises(IsADirectoryError, match="config_file"):
        amct.quantize_model(name, "m.onnx", "r.txt", model, X)


def test_one_path_for_two_files(files, model):
    files.create(model)
    before = files.content()
    for modified, record in ((files.config, files.record), (files.modified, files.modified)):
        with pytest.raises(ValueError, match="choose another path"):
            amct.quantize_model(files.config, modified, record, model, X)
    assert files.content() == before
    os.rename(files.config, files.folder / "config")
    modified = f"{files.out}_deploy_model.onnx"
    amct.quantize_model(str(files.folder / "config"), modified, files.record, model, X)(X)
    with pytest.raises(ValueError, match="deploy.*is modfied_onnx_file"):
        amct.save_model(modified, files.record, files.out)


def test_missing_config(files, model):
    with pytest.raises(FileNotFoundError, match="create_quant_config"):
        files.quantize(model)
    assert files.content() == {}


@pytest.mark.parametrize(
    ("text", "error", "match"),
    [
        ('{"version":1,', json.JSONDecodeError, r"config\.json"),
        ('{"batch_num":1,"batch_num":1}', ValueError, "batch_num"),
        ('{"version":1,"batch_num":1}', RuntimeError, "quant_enable"),
        ('{"version":2}', ValueError, "version.*2"),
        (
            '{"0":{"quant_enable":true,"activaton_quant_params":{}}}',
            ValueError,
            "activation_quant_params",
        ),
        ('{"O":{"quant_enable":true}}', ValueError, "O"),
        ('{"1":{"quant_enable":true}}', ValueError, "ReLU"),
        ('{"0":{"quant_enable":1}}', TypeError, "quant_enable"),
    ],
    ids=["syntax", "twice", "nothing enabled", "version", "key", "layer", "ReLU", "type"],
)
def test_bad_config_leaves_no_file(files, model, text, error, match):
    (files.folder / "config.json").write_text(text)
    with pytest.raises(error, match=match):
        files.quantize(model)
    assert files.content() == {"config.json": text.encode()}


def test_an_unknown_layer_gets_the_closest_name(files):
    model, batches = example("digits")
    files.create(model, batches[0])
    files.edit(lambda config: config.update({"depthwize": config.pop("depthwise")}))
    with pytest.raises(ValueError, match="depthwize.*depthwise"):
        files.quantize(model, batches[0])


def test_a_layer_that_cannot_be_quantized_gets_the_reason(files):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    model.append(nn.Linear(2, 2))
    files.create(model, torch.randn(1, 2))
    files.edit(lambda config: config.update({"0": config["2"]}))
    with pytest.raises(ValueError, match="0.*shares its weight with 1"):
        files.quantize(model, torch.randn(1, 2))


def test_weights_of_an_unsupported_dtype(files):
    model, data = nn.Sequential(nn.Linear(4, 4)).double(), torch.randn(2, 4).double()
    files.create(model, data)
    expected = "0: weight: expected dtype float32 or float16 or bfloat16, got float64"
    with pytest.raises(TypeError, match=expected):
        files.quantize(model, data)
    assert list(files.content()) == ["config.json"]


def test_activations_of_an_unsupported_dtype(files):
    model = nn.Sequential(nn.AvgPool2d(2)).eval()
    files.create(model)
    with pytest.raises(TypeError, match="0: activation: expected dtype float32 or .*, got float64"):
        files.quantize(model)(X.double())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(files, model, value):
    with torch.no_grad():
        model[3].weight[1, 5] = value
    files.create(model)
    before = files.content()
    with pytest.raises(
        RuntimeError, match="3: the weight has NaN or infinite values, the first at index .1, 5."
    ):
        files.quantize(model)
    assert files.content() == before


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_activations_that_are_not_finite(files, model, value):
    files.create(model, batch_num=2)
    calibrated = files.quantize(model)
    calibrated(X)
    bad = X.clone()
    bad[0, 0, 0, 0] = value
    with pytest.raises(RuntimeError, match=r"^0: .*(batch 2 of 2)"):
        calibrated(bad)
    calibrated(X)  # the bad batch did not count
    files.save()


def test_nothing_is_written_below_a_file(files, model):
    blocker = files.folder / "blocker"
    blocker.write_text("mine")
    with pytest.raises(NotADirectoryError, match="blocker"):
        amct.create_quant_config(str(blocker / "config.json"), model, X)
    files.create(model)
    with pytest.raises(NotADirectoryError, match="blocker"):
        amct.quantize_model(files.config, str(blocker / "m.onnx"), files.record, model, X)
    files.quantize(model)(X)
    with pytest.raises(NotADirectoryError, match="blocker"):
        amct.save_model(files.modified, files.record, str(blocker / "out"))
    assert blocker.read_text() == "mine"


def test_missing_modified_model(files):
    with pytest.raises(ValueError, match="modified.onnx.*quantize_model"):
        files.save()


def test_missing_record(files, model):
    files.create(model)
    files.quantize(model)(X)
    os.remove(files.record)
    with pytest.raises(FileNotFoundError, match="record.txt"):
        files.save()


@pytest.mark.parametrize("damage", ["cut", "empty", "unknown field"])
def test_damaged_record(files, model, damage):
    files.create(model)
    files.quantize(model)(X)
    text = Path(files.record).read_text()
    damaged = {
        "cut": text[: len(text) * 2 // 3],
        "empty": "",
        "unknown field": text.replace("scale_d", "scale_q"),
    }[damage]
    Path(files.record).write_text(damaged)
    before = files.content()
    with pytest.raises(RuntimeError, match="record.txt"):
        files.save()
    assert files.content() == before


def test_a_record_cut_between_two_layers_is_told(files, model, caplog):
    files.create(model)
    files.quantize(model)(X)
    text = Path(files.record).read_text()
    Path(files.record).write_text(text[: text.index("record {", 1)])
    files.save()
    assert "record.txt has no factors for 3: left float" in caplog.text
    assert ptq_nodes(files.out + "_deploy_model.onnx") == ["0.quant"]


def test_a_record_of_another_model(files, model):
    files.create(model)
    files.quantize(model)(X)
    text = Path(files.record).read_text()
    Path(files.record).write_text(text.replace('key: "3"', 'key: "fc"'))
    with pytest.raises(RuntimeError, match="fc"):
        files.save()


@pytest.mark.parametrize("content", [b"", b"not onnx", None], ids=["empty", "text", "cut"])
def test_damaged_modified_model(files, model, content):
    files.create(model)
    files.quantize(model)(X)
    whole = Path(files.modified).read_bytes()
    Path(files.modified).write_bytes(whole[: len(whole) // 2] if content is None else content)
    before = files.content()
    with pytest.raises(ValueError, match="modified.onnx"):
        files.save()
    assert files.content() == before


def test_a_bias_beyond_int32_names_layer_and_channel(files, model):
    with torch.no_grad():
        model[0].bias[1] = 1e9
    files.create(model)
    files.quantize(model)(X)
    before = files.content()
    with pytest.raises(RuntimeError, match="0: the bias 1000000000.0 of channel 1.*int32"):
        files.save()
    assert files.content() == before


def test_a_model_that_cannot_be_copied(files, model):
    class Stubborn(nn.Sequential):
        def __deepcopy__(self, memo):
            raise ValueError("no copies")

    stubborn = Stubborn(*model)
    files.create(stubborn)
    with pytest.raises(RuntimeError, match="cannot be copied.*no copies"):
        files.quantize(stubborn)


def test_a_tiny_but_real_input_range_stays_float(files, caplog):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).eval()
    data = torch.randn(3, 4) * 1e-8
    files.create(model, data)
    files.quantize(model, data)(data)
    assert "0 is left float: its input range is real but tiny" in caplog.text
    files.save()
    deploy = ptq_nodes(files.out + "_deploy_model.onnx")
    assert deploy == ["1.quant"]


def ptq_nodes(path):
    import onnx

    return [n.name for n in onnx.load(path).graph.node if n.op_type == "AscendQuant"]


def test_tiny_weight_channels_are_named(files, caplog):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3)).eval()
    with torch.no_grad():
        model[0].weight[2] *= 1e-8
    files.create(model)
    files.quantize(model)
    assert "0: the weights in output channels 2 are real but too small" in caplog.text


def test_files_and_folders_have_the_promised_modes(tmp_path, model):
    files = Files(tmp_path / "new" / "folder")
    files.create(model)
    files.quantize(model)(X)
    files.save()
    modes = {stat.S_IMODE(p.stat().st_mode) for p in files.folder.iterdir()}
    assert modes == {0o640}
    assert stat.S_IMODE(files.folder.stat().st_mode) == 0o750


def test_replaced_files_are_warned_of(tmp_path, model, caplog):
    flow = ptq(tmp_path, model, [X])
    caplog.clear()
    flow.save()
    assert "out_deploy_model.onnx exists and is replaced" in caplog.text


@pytest.mark.parametrize(
    ("save_path", "names"),
    [
        ("out", {"out_deploy_model.onnx", "out_fake_quant_model.onnx"}),
        ("sub/", {"deploy_model.onnx", "fake_quant_model.onnx"}),
    ],
)
def test_names_of_the_exported_files(tmp_path, model, save_path, names):
    ptq(tmp_path, model, [X], save=False)
    (tmp_path / "save").mkdir()
    amct.save_model(
        str(tmp_path / "modified.onnx"),
        str(tmp_path / "record.txt"),
        f"{tmp_path}/save/{save_path}",
    )
    assert {p.name for p in (tmp_path / "save").rglob("*.onnx")} == names


@pytest.mark.parametrize(
    ("arguments", "error"),
    [(("loud",), ValueError), ((1,), TypeError), (("info", "trace"), ValueError)],
    ids=str,
)
def test_bad_logging_levels(arguments, error):
    with pytest.raises(error, match="level"):
        amct.set_logging_level(*arguments)


def test_logging_levels(tmp_path, model, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    amct.set_logging_level(print_level="ERROR", save_level="warning")
    try:
        assert not (tmp_path / "amct_log").exists()
        logging.getLogger("amct_pytorch.test").warning("written")
        assert "written" in (tmp_path / "amct_log" / "amct_pytorch.log").read_text()
        assert "written" not in capsys.readouterr().err
    finally:
        logger = logging.getLogger("amct_pytorch")
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
            handler.close()
        logger.setLevel(logging.NOTSET)
