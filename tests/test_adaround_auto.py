"""AdaRound in automatic calibration: what a search rounds is what it judges and exports."""

import numpy as np
import onnx
import pytest
from auto_flow import Flow, Scripted
from dmq_flow import Files
from onnx import numpy_helper
from ptq_flow import run as run_onnx

import amct_pytorch as amct

ROUNDED = ["left", "right", "up", "fc"]
ADA = {"wts_algo": "ada_quantize", "num_iteration": 300, "num_bits": 8}


def round_some(config):
    for name in ROUNDED:
        config[name]["weight_quant_params"] = dict(ADA)
        if config["left"].get("dmq_balancer_param"):
            config[name]["dmq_balancer_param"] = 0.5


def balance_too(config):
    config["left"]["dmq_balancer_param"] = 0.5
    round_some(config)


@pytest.fixture(params=[round_some, balance_too], ids=["plain", "balanced"])
def flow(request, tmp_path):
    (tmp_path / "auto").mkdir()
    flow = Flow(tmp_path / "auto", edit=request.param)
    flow.balanced = request.param is balance_too
    return flow


def codes(folder, name):
    graph = onnx.load(folder / "net_fake_quant_model.onnx").graph
    return numpy_helper.to_array(next(i for i in graph.initializer if i.name == f"{name}.weight"))


def test_the_result_is_what_the_verbs_give(flow, tmp_path):
    result = flow.run(2)
    assert result.satisfied
    assert result.fidelity.largest_difference < 1e-6
    files = Files(tmp_path, flow.model, flow.batches)
    files.config = str(flow.folder / "out/accuracy_based_auto_calibration_final_config.json")
    if flow.balanced:
        files.run(files.preprocess())
    files.run(files.quantize())
    amct.save_model(files.modified, files.record, str(tmp_path / "net"))
    assert (flow.folder / "record.txt").read_bytes() == (tmp_path / "record.txt").read_bytes()
    for name in ("net_deploy_model.onnx", "net_fake_quant_model.onnx"):
        assert (flow.folder / "out" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_an_interrupted_search_goes_on_with_the_roundings_it_had(flow):
    class KilledError(Exception):
        pass

    class Evaluator(Scripted):
        killed_at = 3

        def evaluate(self, model):
            if len(self.evaluated) == self.killed_at:
                raise KilledError
            self.output = model(self.batches[1])
            return super().evaluate(model)

    with pytest.raises(KilledError):
        flow.run(Evaluator(flow.batches, 2))
    Evaluator.killed_at = None
    again = Evaluator(flow.batches, 2)
    result = flow.run(again)
    assert again.calibrated == result.calibrations == 1  # of the winner alone
    in_onnx = run_onnx(onnx.load(flow.folder / "out/net_fake_quant_model.onnx"), flow.batches[1])
    np.testing.assert_allclose(again.output.numpy(), in_onnx, rtol=1e-5, atol=1e-6)


def test_weights_are_not_rounded_to_nearest(tmp_path):
    results = {}
    for iterations in (0, 300):

        def edit(config, iterations=iterations):
            round_some(config)
            for name in ROUNDED:
                config[name]["weight_quant_params"]["num_iteration"] = iterations

        folder = tmp_path / str(iterations)
        folder.mkdir()
        flow = Flow(folder, edit=edit)
        flow.run(0)
        results[iterations] = {name: codes(folder / "out", name) for name in ROUNDED}
    differ = sum((results[0][n] != results[300][n]).sum() for n in ROUNDED)
    assert differ > 0
