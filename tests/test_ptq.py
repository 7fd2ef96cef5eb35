"""Post-training quantization as a user runs it."""

import copy
import gc
import logging
import pickle

import numpy as np
import onnx
import pytest
import torch
from models import MODELS, example
from ptq_flow import ptq, run
from torch import nn

import amct_pytorch as amct
from amct_pytorch.export.verify import run_deploy
from amct_pytorch.records import Records

DYNAMIC = {"input_names": ["x"], "output_names": ["y"], "dynamic_axes": {"x": {0: "N"}, "y": [0]}}


@pytest.fixture(scope="module", params=MODELS)
def flow(request, tmp_path_factory):
    model, batches = example(request.param)
    flow = ptq(tmp_path_factory.mktemp("flow"), model, batches, **DYNAMIC)
    flow.model, flow.batches = model, batches
    return flow


def test_every_layer_is_quantized(flow):
    quantized = {
        n.name.removesuffix(".dequant")
        for n in flow.deploy.graph.node
        if n.op_type == "AscendDequant"
    }
    expected = {n for n, m in flow.model.named_modules() if amct.capability.kind_of(m)}
    assert quantized == expected


def test_fake_quant_passes_the_checker_and_runs_at_other_batch_sizes(flow):
    onnx.checker.check_model(flow.fake_quant, full_check=True)
    x = torch.cat(flow.batches)[:3]
    np.testing.assert_array_equal(
        flow.run_fake_quant(x), flow.run_fake_quant(torch.cat(flow.batches))[:3]
    )


def test_quantized_is_close_to_float(flow):
    x = torch.cat(flow.batches)
    with torch.no_grad():
        expected = flow.model(x).numpy()
    error = flow.run_fake_quant(x) - expected
    assert 10 * np.log10((expected**2).sum() / (error**2).sum()) > 25


def test_simulation_equals_fake_quant(flow):
    x = torch.cat(flow.batches)
    simulated = amct.simulate_model(flow.calibrated, flow.record_file)
    np.testing.assert_allclose(simulated(x).numpy(), flow.run_fake_quant(x), rtol=1e-5, atol=1e-6)


def test_integer_execution_of_deploy_equals_fake_quant(flow):
    x = torch.cat(flow.batches)
    exact = run_deploy(flow.deploy, {"x": x.numpy()})["y"]
    np.testing.assert_allclose(exact, flow.run_fake_quant(x), rtol=1e-5, atol=1e-6)


def test_the_users_model_is_untouched(tmp_path):
    model, batches = example("digits")
    before = copy.deepcopy(model.state_dict())
    names = [name for name, _ in model.named_modules()]
    ptq(tmp_path, model, batches)
    assert [name for name, _ in model.named_modules()] == names
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_reruns_are_byte_identical(tmp_path):
    contents = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        ptq(tmp_path / name, *example("digits"))
        contents.append({f.name: f.read_bytes() for f in sorted((tmp_path / name).iterdir())})
    assert contents[0] == contents[1]
    assert len(contents[0]) == 5


def test_output_of_the_calibrated_model_has_only_quantized_weights(tmp_path):
    model, batches = example("digits")
    flow = ptq(tmp_path, model, batches)
    expected = run(flow.modified, batches[0])
    np.testing.assert_allclose(flow.calibrated(batches[0]).numpy(), expected, rtol=1e-4, atol=1e-5)


def test_modified_model_is_valid_and_named_by_layer(tmp_path):
    flow = ptq(tmp_path, *example("digits"))
    onnx.checker.check_model(flow.modified, full_check=True)
    names = {node.name for node in flow.modified.graph.node}
    assert {"stem.0", "left", "right", "depthwise", "up", "pool", "fc"} <= names
    assert not any(node.op_type == "BatchNormalization" for node in flow.modified.graph.node)


def test_layers_left_float_agree_too(tmp_path):
    model, batches = example("digits")
    flow = ptq(
        tmp_path, model, batches, config_options={"skip_layers": ["stem.0", "up"]}, **DYNAMIC
    )
    result = flow.run_fake_quant(batches[0])
    exact = run_deploy(flow.deploy, {"x": batches[0].numpy()})["y"]
    simulated = amct.simulate_model(flow.calibrated, flow.record_file)(batches[0]).numpy()
    np.testing.assert_allclose(exact, result, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(simulated, result, rtol=1e-5, atol=1e-5)
    assert "stem.0.quant" not in {node.name for node in flow.deploy.graph.node}


def test_the_users_options_are_untouched(tmp_path):
    options = copy.deepcopy(DYNAMIC)
    ptq(tmp_path, *example("digits"), **options)
    assert options == DYNAMIC


@pytest.mark.parametrize("opset", [11, 13, 17, 18, 20])
def test_opsets(tmp_path, opset):
    model, batches = example("digits")
    flow = ptq(tmp_path, model, batches, opset_version=opset, **DYNAMIC)
    assert flow.deploy.opset_import[0].version == opset
    x = torch.cat(batches)[:3]
    simulated = amct.simulate_model(flow.calibrated, flow.record_file)
    np.testing.assert_allclose(flow.run_fake_quant(x), simulated(x).numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        run_deploy(flow.deploy, {"x": x.numpy()})["y"], simulated(x).numpy(), rtol=1e-5, atol=1e-6
    )


def test_float16_models(tmp_path):
    model, batches = example("digits", torch.float16)
    flow = ptq(tmp_path, model, batches, **DYNAMIC)
    dequant = [n for n in flow.deploy.graph.node if n.op_type == "AscendDequant"]
    assert {a.i for n in dequant for a in n.attribute if a.name == "dtype"} == {1}
    onnx.checker.check_model(flow.fake_quant, full_check=True)
    y = flow.run_fake_quant(batches[0])
    assert y.dtype == np.float16
    simulated = amct.simulate_model(flow.calibrated, flow.record_file)(batches[0]).numpy()
    np.testing.assert_allclose(y, simulated, rtol=2e-3, atol=2e-3)
    exact = run_deploy(flow.deploy, {"x": batches[0].numpy()})["y"]
    np.testing.assert_allclose(y, exact, rtol=2e-3, atol=2e-3)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x, y, *, scale=None):
        h = self.a(x) + self.b(y)
        return self.c(h if scale is None else h * scale)


def test_several_and_keyword_inputs(tmp_path):
    torch.manual_seed(0)
    model = TwoInputs().eval()
    batches = [
        (torch.randn(3, 4), torch.randn(3, 4), {"scale": torch.tensor(2.0)}) for _ in range(2)
    ]
    flow = ptq(tmp_path, model, batches, input_names=["x", "y", "scale"])
    x, y, keywords = batches[0]
    result = flow.run_fake_quant(x, y, keywords["scale"])
    np.testing.assert_allclose(result, model(x, y, **keywords).detach().numpy(), atol=0.1)


class SharedInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x):
        return self.a(x) + self.b(x)


def test_equal_factors_share_one_quantization(tmp_path):
    model = SharedInput().eval()
    flow = ptq(tmp_path, model, [torch.randn(2, 3, 5, 5)])
    assert [n.name for n in flow.deploy.graph.node if n.op_type == "AscendQuant"] == ["a.quant"]
    assert sum(n.op_type == "Round" for n in flow.fake_quant.graph.node) == 1


def test_a_layer_at_the_graph_output_gives_its_name_to_the_dequantization(tmp_path):
    model = nn.Sequential(nn.Linear(3, 2)).eval()
    flow = ptq(tmp_path, model, [torch.randn(2, 3)], output_names=["logits"])
    layer = next(n for n in flow.deploy.graph.node if n.name == "0")
    dequant = next(n for n in flow.deploy.graph.node if n.op_type == "AscendDequant")
    assert layer.output[0] == "0_output0"
    assert dequant.output[0] == "logits"
    assert [o.name for o in flow.deploy.graph.output] == ["logits"]


def test_float_layers_between_quantized_ones_are_executed(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv3d(1, 2, 2), nn.ConvTranspose3d(2, 2, 2, 2), nn.Conv3d(2, 1, 1))
    x = torch.randn(1, 1, 4, 4, 4)
    flow = ptq(tmp_path, model.eval(), [x], input_names=["x"], output_names=["y"])
    exact = run_deploy(flow.deploy, {"x": x.numpy()})["y"]
    np.testing.assert_allclose(exact, flow.run_fake_quant(x), rtol=1e-5, atol=1e-6)


class Leftovers(nn.Module):
    """One value as two outputs, a BatchNorm that is not folded, a Pad written for a pooling."""

    def __init__(self):
        super().__init__()
        self.conv, self.conv2 = nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 2, padding="same")
        self.bn1, self.bn2 = nn.BatchNorm2d(2), nn.BatchNorm2d(2)
        self.pool = nn.AvgPool2d(2)

    def forward(self, x):
        x = self.conv(x)
        y = self.conv2(self.pool(nn.functional.pad(self.bn1(x) * self.bn2(x), (1, 1, 1, 1))))
        return y, y


@pytest.mark.parametrize("opset", [13, 18])
def test_all_forms_of_an_untidy_model_agree(tmp_path, opset):
    torch.manual_seed(0)
    model, x = Leftovers().eval(), torch.randn(2, 1, 8, 8)
    flow = ptq(tmp_path, model, [x], opset_version=opset, input_names=["x"])
    onnx.checker.check_model(flow.fake_quant, full_check=True)
    result = flow.run_fake_quant(x)
    for exact in run_deploy(flow.deploy, {"x": x.numpy()}).values():
        np.testing.assert_allclose(exact, result, rtol=1e-5, atol=1e-6)
    for simulated in amct.simulate_model(flow.calibrated, flow.record_file)(x):
        np.testing.assert_allclose(simulated.numpy(), result, rtol=1e-5, atol=1e-6)
    for graph in (flow.deploy.graph, flow.fake_quant.graph):
        assert not any(node.op_type == "Pad" for node in graph.node)
        read = {name for node in graph.node for name in node.input} | {o.name for o in graph.output}
        assert all(read.intersection(node.output) for node in graph.node)


def test_a_model_in_training_mode_is_told_and_keeps_its_modes(tmp_path, caplog):
    model, batches = example("digits")
    model.train()
    model.stem[1].eval()
    flow = ptq(tmp_path, model, batches)
    assert "the model is in training mode" in caplog.text
    assert isinstance(flow.calibrated.stem[1], nn.Identity)  # folded
    assert flow.calibrated.training
    assert not flow.calibrated.stem[1].training


def test_layers_that_run_twice_stay_float(tmp_path, caplog):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.again, self.once = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.once(self.again(self.again(x)))

    torch.manual_seed(0)
    flow = ptq(tmp_path, Twice().eval(), [torch.randn(2, 4)])
    assert "again" not in flow.config
    assert "again (Linear) is left float: it runs 2 times in one forward" in caplog.text
    assert [n.name for n in flow.deploy.graph.node if n.op_type == "AscendQuant"] == ["once.quant"]


def test_record_is_complete_with_the_last_batch(tmp_path):
    model, batches = example("digits")
    flow = ptq(tmp_path, model, batches, save=False)
    records = Records.load(flow.record_file)
    assert not records.progress
    assert list(records) == ["stem.0", "left", "right", "depthwise", "up", "pool", "fc"]
    assert all(record.scale_d is not None for record in records.values())
    assert records["pool"].scale_w == (1.0,)


@pytest.mark.parametrize("seen", [0, 1])
def test_too_few_batches_are_told_with_both_counts(tmp_path, seen):
    model, batches = example("digits", batches=3)
    flow = ptq(tmp_path, model, batches, save=False)
    (tmp_path / "again").mkdir()
    calibrated = amct.quantize_model(
        str(tmp_path / "config.json"),
        str(tmp_path / "modified.onnx"),
        str(tmp_path / "record.txt"),
        model,
        batches[0],
    )
    for batch in batches[:seen]:
        calibrated(batch)
    with pytest.raises(RuntimeError, match=rf"stem\.0.*{seen} of 3"):
        flow.save()
    assert not (tmp_path / "out_deploy_model.onnx").exists()


def test_a_layer_that_calibration_misses_is_named(tmp_path):
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.always, self.rarely = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            x = self.always(x)
            return self.rarely(x) if x.shape[0] > 2 else x

    torch.manual_seed(0)
    model = Branch().eval()
    files = [str(tmp_path / name) for name in ("config.json", "modified.onnx", "record.txt")]
    amct.create_quant_config(files[0], model, torch.randn(4, 4), batch_num=2)
    calibrated = amct.quantize_model(*files, model, torch.randn(4, 4))
    calibrated(torch.randn(1, 4))
    calibrated(torch.randn(4, 4))
    with pytest.raises(RuntimeError, match=r"rarely.*1 of 2"):
        amct.save_model(files[1], files[2], str(tmp_path / "out"))


class ReadsBatchNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.bn(self.conv(x.to(self.bn.weight.dtype)))


def test_a_folded_batch_norm_keeps_its_attributes(tmp_path):
    torch.manual_seed(0)
    model, x = ReadsBatchNorm().eval(), torch.randn(2, 2, 4, 4)
    flow = ptq(tmp_path, model, [x])
    assert isinstance(flow.calibrated.bn, nn.Identity)
    assert "bn.weight" not in flow.calibrated.state_dict()
    copied = pickle.loads(pickle.dumps(flow.calibrated)).half()
    assert copied.bn.num_features == 4
    simulated = amct.simulate_model(flow.calibrated, flow.record_file)
    np.testing.assert_array_equal(flow.run_fake_quant(x), simulated(x).numpy())


def test_shapes_that_onnx_infers_otherwise_are_no_users_matter(tmp_path, caplog):
    """With ceil_mode the inference of onnx and torch disagree on the size of the output."""
    model = nn.Sequential(nn.AvgPool2d(2, padding=1, ceil_mode=True)).eval()
    x = torch.randn(1, 2, 7, 7)
    with caplog.at_level(logging.WARNING):
        flow = ptq(tmp_path, model, [x], opset_version=18)
    assert not [record for record in caplog.records if record.name.startswith("onnx")]
    np.testing.assert_allclose(flow.run_fake_quant(x), model(x).numpy(), atol=0.05)


class SharesWhenCopied(nn.Sequential):
    """Its copies have layers of their own, with the parameters of the original."""

    def __deepcopy__(self, memo):
        return SharesWhenCopied(*(copy.copy(module) for module in self))


def test_weights_that_a_copy_shares_are_untouched(tmp_path):
    torch.manual_seed(0)
    model = SharesWhenCopied(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ptq(tmp_path, model, [torch.randn(1, 3, 8, 8)])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("running", [True, False])
def test_the_garbage_collector_waits_for_a_verb_and_is_then_as_before(tmp_path, running):
    seen = []

    class Asks(nn.Sequential):
        def forward(self, x):
            seen.append(gc.isenabled())
            return super().forward(x)

    model = Asks(nn.Linear(4, 4)).eval()
    (gc.enable if running else gc.disable)()
    try:
        amct.create_quant_config(str(tmp_path / "config.json"), model, torch.randn(2, 4))
        with pytest.raises(RuntimeError):
            amct.create_quant_config(str(tmp_path / "config.json"), model, torch.randn(2, 5))
        assert gc.isenabled() == running
    finally:
        gc.enable()
    assert not any(seen)
