"""Models inside wrappers: refused before quantization, seen through when they are saved."""

import pytest
import torch
from qat_flow import retrain
from torch import nn
from torch.optim.swa_utils import AveragedModel

import amct_pytorch as amct

DATA = torch.ones(2, 3, 6, 6)


def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))


def compiled(model):
    return torch.compile(model, backend="eager")


@pytest.mark.parametrize(
    ("wrap", "inside"),
    [(nn.DataParallel, "module"), (AveragedModel, "module"), (compiled, "_orig_mod")],
    ids=["parallel", "averaged", "compiled"],
)
def test_a_wrapped_float_model_is_refused_with_what_to_pass(tmp_path, wrap, inside):
    flow = retrain(tmp_path, net(), DATA)
    flow.float_model = wrap(net())
    refused = f"create first and wrap second, pass model.{inside}$"
    with pytest.raises(RuntimeError, match=refused):
        flow.create()
    with pytest.raises(RuntimeError, match=refused):
        amct.create_quant_retrain_config(flow.config_file, flow.float_model, DATA)


@pytest.mark.parametrize("wrap", [AveragedModel, compiled], ids=["averaged", "compiled"])
def test_a_wrapped_trained_model_is_saved(tmp_path, wrap):
    flow = retrain(tmp_path, net(), DATA)
    flow.model.train()(DATA)
    flow.save(wrap(flow.model))
    assert torch.equal(flow.run_fake_quant(DATA), flow.model.eval()(DATA).detach())


def test_the_state_of_an_averaged_model_is_restored(tmp_path):
    flow = retrain(tmp_path, net(), DATA)
    flow.model.train()(DATA)
    averaged = AveragedModel(flow.model, use_buffers=True)
    averaged.update_parameters(flow.model)
    torch.save(averaged.state_dict(), tmp_path / "averaged.pth")
    restored = flow.restore(tmp_path / "averaged.pth")
    assert torch.equal(restored.eval()(DATA), averaged.eval()(DATA))
