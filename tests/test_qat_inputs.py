"""What reaches the quantizers of a trained model in unusual ways."""

import pytest
import torch
from qat_flow import retrain
from torch import nn

DATA = torch.linspace(-1, 1, 32).reshape(8, 4)


class TwoReaders(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.a(x) + self.b(x)


def test_readers_of_one_input_that_are_trained_in_turns(tmp_path):
    """Between them the clips have changed, and the graph of the first is freed."""
    model = retrain(tmp_path, TwoReaders().eval(), DATA).model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(DATA)
    for layer in (model.a, model.b):
        optimizer.zero_grad()
        layer(DATA).square().mean().backward()
        optimizer.step()


def test_readers_of_one_input_in_inference_mode(tmp_path):
    model = retrain(tmp_path, TwoReaders().eval(), DATA).model.train()
    with torch.inference_mode():
        assert model(DATA).isfinite().all()


@pytest.mark.parametrize(("factor", "what"), [(0.0, "zero"), (1e-9, "1e-09 at most, too small")])
def test_first_batches_that_say_nothing_are_told(tmp_path, caplog, factor, what):
    model = retrain(tmp_path, TwoReaders().eval(), DATA).model
    model(DATA * factor)
    assert f"a: its input was {what}" in caplog.text
    assert model.a.quant_module.acts_clip_max.item() == 1.0


def test_a_real_range_whose_scale_is_one_is_not_told(tmp_path, caplog):
    model = retrain(tmp_path, TwoReaders().eval(), DATA).model
    model(DATA * 127)
    assert "its input was" not in caplog.text


class ReadsItsWeight(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.last = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 3)

    def forward(self, x):
        return self.last(self.bn(self.conv(x)) + (self.conv.weight**2).sum())


@pytest.mark.parametrize("folded", [0.01, 1.0], ids=["strong", "weak"])
def test_a_layer_whose_weight_is_read_elsewhere_stays_float(tmp_path, caplog, folded):
    model, images = ReadsItsWeight().eval(), torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
    model.bn.running_var.fill_(folded)
    flow = retrain(tmp_path, model, images)
    assert "conv (Conv2d) is left float: its weight is also used elsewhere" in caplog.text
    flow.model(images)
    evaluated = flow.model.eval()(images).detach()
    assert torch.allclose(flow.save().run_fake_quant(images), evaluated, atol=1e-6)


def test_a_model_turned_to_float16_after_create(tmp_path):
    model = retrain(tmp_path, TwoReaders().eval(), DATA).model.train()
    model(DATA)
    model.half()(DATA.half()).sum().backward()
    assert model.eval()(DATA.half()).dtype == torch.float16


def test_hooks_of_a_layer_that_will_not_run_are_told(tmp_path, caplog):
    model = TwoReaders().eval()
    model.b.register_forward_hook(lambda module, args, output: None)
    retrain(tmp_path, model, DATA)
    assert "b: its forward hooks do not run in the model that is trained" in caplog.text


def test_the_default_dtype_of_the_process_plays_no_part(tmp_path):
    model = TwoReaders().eval()
    torch.set_default_dtype(torch.float64)
    try:
        retrained = retrain(tmp_path, model, DATA).model.train()
        retrained(DATA).sum().backward()
    finally:
        torch.set_default_dtype(torch.float32)
    assert retrained.a.quant_module.acts_clip_max.dtype == torch.float32
    assert retrained.eval()(DATA).isfinite().all()
