"""A capture holds the tensors of the model, whatever their size, and sees them as they are."""

import numpy as np
import pytest
import torch
from torch import nn

from amct_pytorch.graph.options import ExportOptions
from amct_pytorch.graph.site import locate
from amct_pytorch.steps import capture_model

OPSETS = pytest.mark.parametrize("opset", [13, 18])


class Tagger(nn.Module):
    def __init__(self, cls, hidden):
        super().__init__()
        self.rnn = cls(300, hidden)

    def forward(self, x, h, c):
        return self.rnn(x, (h, c) if isinstance(self.rnn, nn.LSTM) else h)[0]


@OPSETS
@pytest.mark.parametrize("cls", [nn.LSTM, nn.GRU])
def test_a_recurrent_layer_of_any_size(cls, opset):
    hidden = 600  # its gates are folded into one initializer, beyond what folding takes by itself
    data = (torch.randn(2, 1, 300), torch.zeros(1, 1, hidden), torch.zeros(1, 1, hidden))
    options = ExportOptions(opset_version=opset)
    _, facts = capture_model(Tagger(cls, hidden).eval(), data, options, recurrent=True)
    assert facts.layers["rnn"].reason is None


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(4, 6, 3)
        self.fc = nn.Linear(10, 300)
        self.fc3 = nn.Linear(300, 8, bias=False)

    def forward(self, x):
        return self.fc3(self.fc(self.conv(x)))[:, 0]


@OPSETS
@pytest.mark.parametrize("name", ["conv", "fc", "fc3"])
def test_weights_are_not_copied(name, opset):
    model = Mixer().eval()
    data = torch.randn(2, 4, 12)
    captured, facts = capture_model(model, data, ExportOptions(opset_version=opset))
    (node,) = (n for n in captured.nodes[name] if n.op_type in ("Conv", "Gemm", "MatMul"))
    weight = model.get_submodule(name).weight.detach().numpy()
    assert facts.layers[name].reason is None
    assert np.shares_memory(locate(node).weight.read(), weight)
