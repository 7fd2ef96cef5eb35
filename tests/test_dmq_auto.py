"""DMQ balancing in automatic calibration."""

import numpy as np
import onnx
import pytest
import torch
from auto_flow import Flow, Scripted
from dmq_flow import Files
from ptq_flow import run as run_onnx

import amct_pytorch as amct
from amct_pytorch.export.verify import run_deploy
from amct_pytorch.records import Records

BALANCED = ["left", "right", "up", "fc"]


def balance(config):
    for name in BALANCED:
        config[name]["dmq_balancer_param"] = 0.5


@pytest.fixture
def flow(tmp_path):
    (tmp_path / "auto").mkdir()
    return Flow(tmp_path / "auto", edit=balance)


def test_one_more_calibration_finds_the_factors(flow):
    result = flow.run(0)
    assert (result.calibrations, flow.evaluator.calibrated) == (2, 2)
    records = Records.load(str(flow.folder / "record.txt"))
    assert [n for n, r in records.items() if r.tensor_balance_factor] == BALANCED


@pytest.mark.parametrize("recalibrate", ["final", "never", "always"])
def test_the_result_is_what_the_verbs_give(recalibrate, flow, tmp_path):
    result = flow.run(2, recalibrate=recalibrate)
    assert result.calibrations == {"final": 3, "never": 2, "always": 5}[recalibrate]
    if recalibrate == "never":  # its factors are of other rolled back layers
        return
    files = Files(tmp_path, flow.model, flow.batches)
    files.config = str(flow.folder / "out/accuracy_based_auto_calibration_final_config.json")
    files.run(files.preprocess())
    files.run(files.quantize())
    amct.save_model(files.modified, files.record, str(tmp_path / "net"))
    assert (flow.folder / "record.txt").read_bytes() == (tmp_path / "record.txt").read_bytes()
    for name in ("net_deploy_model.onnx", "net_fake_quant_model.onnx"):
        assert (flow.folder / "out" / name).read_bytes() == (tmp_path / name).read_bytes()


@pytest.mark.parametrize("needed", [0, 3])
def test_the_simulation_that_was_judged_is_the_exported_model(needed, flow):
    outputs = []

    class Evaluator(Scripted):
        def evaluate(self, model):
            outputs.append(model(self.batches[1]))
            return super().evaluate(model)

    result = flow.run(Evaluator(flow.batches, needed))
    x = flow.batches[1]
    exported = onnx.load(flow.folder / "out/net_fake_quant_model.onnx")
    in_onnx = run_onnx(exported, x)
    np.testing.assert_allclose(outputs[-1].numpy(), in_onnx, rtol=1e-5, atol=1e-6)
    deploy = onnx.load(flow.folder / "out/net_deploy_model.onnx")
    (exact,) = run_deploy(deploy, {deploy.graph.input[0].name: x.numpy()}).values()
    np.testing.assert_allclose(exact, in_onnx, rtol=1e-5, atol=1e-6)
    assert result.fidelity.largest_difference < 1e-6
    # Layers in float are as they came.
    muls = {node.name for node in deploy.graph.node if node.op_type == "Mul"}
    assert muls == {f"{name}.mul" for name in BALANCED if name in result.quantized_layers}


def test_all_layers_switched_off_compute_what_the_float_model_does(flow):
    seen = {}

    class Evaluator(Scripted):
        def evaluate(self, model):
            for layer in (m for m in model.modules() if hasattr(m, "enabled")):
                was, layer.enabled = layer.enabled, False
                seen[layer.name] = (layer, was)
            if seen:
                seen["output"] = model(self.batches[0])
                for layer, was in (pair for name, pair in seen.items() if name != "output"):
                    layer.enabled = was
            return super().evaluate(model)

    flow.run(Evaluator(flow.batches, 0))
    torch.testing.assert_close(seen["output"], flow.model(flow.batches[0]), rtol=1e-4, atol=1e-5)


def test_an_interrupted_search_keeps_the_factors(flow):
    class KilledError(Exception):
        pass

    class Evaluator(Scripted):
        killed_at = 3

        def evaluate(self, model):
            if len(self.evaluated) == self.killed_at:
                raise KilledError
            return super().evaluate(model)

    evaluator = Evaluator(flow.batches, 2)
    with pytest.raises(KilledError):
        flow.run(evaluator)
    assert evaluator.calibrated == 2
    Evaluator.killed_at = None
    again = Evaluator(flow.batches, 2)
    result = flow.run(again)
    assert (result.calibrations, again.calibrated) == (1, 1)  # of the winner alone
    resumed = (flow.folder / "record.txt").read_bytes()
    flow.run(Evaluator(flow.batches, 2), resume=False)
    assert (flow.folder / "record.txt").read_bytes() == resumed


def test_too_few_batches_for_the_factors(flow):
    evaluator = Scripted(flow.batches[:1], 2)
    with pytest.raises(RuntimeError, match="expected at least 2 batches .*got 1; the layers left"):
        flow.run(evaluator)
