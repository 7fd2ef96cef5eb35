"""Which LSTM and GRU layers can be quantized, and why others cannot."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from amct_pytorch.graph.facts import main_nodes
from amct_pytorch.graph.options import ExportOptions
from amct_pytorch.graph.recurrent import locate_recurrent
from amct_pytorch.layers.gates import gates_to_onnx
from amct_pytorch.steps import capture_model

KINDS = pytest.mark.parametrize("cls", [nn.LSTM, nn.GRU])
OPSETS = pytest.mark.parametrize("opset", [13, 18])


def as_it_is(rnn, x, h, c):
    return rnn(x, (h, c) if isinstance(rnn, nn.LSTM) else h)[0]


def without_states(rnn, x, h, c):
    return rnn(x)[0]


def with_zeros(rnn, x, h, c):
    zeros = torch.zeros(1, x.shape[1], 4)
    return as_it_is(rnn, x, zeros, zeros)


def twice(rnn, x, h, c):
    return as_it_is(rnn, x, h, c) + as_it_is(rnn, 2 * x, h, c)


def without_batch(rnn, x, h, c):
    return as_it_is(rnn, x[:, 0], h[:, 0], c[:, 0])


def never(rnn, x, h, c):
    return 2 * x


def with_computed_states(rnn, x, h, c):
    return as_it_is(rnn, x, h.sigmoid(), c * 2)


class Net(nn.Module):
    def __init__(self, rnn, call=as_it_is):
        super().__init__()
        self.rnn, self.call = rnn, call

    def forward(self, x, h, c):
        return self.call(self.rnn, x, h, c)


def captured(rnn, call=as_it_is, opset=13):
    states = (rnn.num_layers * (2 if rnn.bidirectional else 1), 2, 4)
    hidden = torch.randn(states[0], 2, rnn.proj_size or 4)
    data = (torch.randn(5, 2, 3), hidden, torch.randn(states))
    if rnn.batch_first:
        data = (data[0].swapaxes(0, 1).contiguous(), *data[1:])
    net = Net(rnn, call).eval()
    return capture_model(net, data, ExportOptions(opset_version=opset))


def reason(*args, **options):
    return captured(*args, **options)[1].layers["rnn"].reason


@KINDS
@OPSETS
@pytest.mark.parametrize("options", [{}, {"batch_first": True}, {"bias": False}], ids=str)
def test_a_layer_as_it_should_be(cls, opset, options):
    capture, facts = captured(cls(3, 4, **options), opset=opset)
    layer = facts.layers["rnn"]
    assert layer.reason is None
    assert (layer.kind, layer.in_channels, layer.out_channels) == (cls.__name__, 3, 4)
    assert layer.has_bias is options.get("bias", True)
    (node,) = main_nodes(capture, "rnn", layer.kind)
    assert node.op_type == cls.__name__


@KINDS
@OPSETS
def test_states_may_be_computed_from_an_input(cls, opset):
    assert reason(cls(3, 4), with_computed_states, opset=opset) is None


NO_STATES = "its initial states do not come from an input of the model"


@KINDS
@OPSETS
@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (without_states, NO_STATES),
        (with_zeros, NO_STATES),
        (twice, "it runs 2 times in one forward"),
        (without_batch, "it is called on an input without a batch dimension"),
        (never, "forward does not call it with this input_data"),
    ],
)
def test_a_call_that_is_refused(cls, opset, call, expected):
    assert reason(cls(3, 4), call, opset=opset) == expected


@KINDS
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"num_layers": 2}, "it has num_layers=2, only 1 can be quantized"),
        ({"bidirectional": True}, "it has bidirectional=True, only False can be quantized"),
        pytest.param(
            {"dropout": 0.5},
            "it has dropout=0.5, only 0 can be quantized",
            marks=pytest.mark.filterwarnings("ignore:dropout option"),
        ),
    ],
)
def test_an_option_that_is_refused(cls, options, expected):
    assert reason(cls(3, 4, **options)) == expected


def test_a_projection_is_refused():
    expected = "it has proj_size=2, only 0 can be quantized"
    assert reason(nn.LSTM(3, 4, proj_size=2), opset=18) == expected


@KINDS
def test_a_parametrized_weight_is_refused(cls):
    rnn = parametrizations.weight_norm(cls(3, 4), "weight_hh_l0")
    assert reason(rnn) == "its weight_hh_l0 is parametrized, not a plain parameter"


@KINDS
def test_half_precision_is_refused(cls):
    rnn = cls(3, 4).half()

    def halved(rnn, x, h, c):
        return as_it_is(rnn, x.half(), h.half(), c.half())

    assert reason(rnn, halved) == "its weights are float16, only float32 can be quantized"


@KINDS
def test_a_shared_parameter_is_refused(cls):
    rnn = cls(3, 3)

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = rnn, cls(3, 3)
            self.other.bias_ih_l0 = rnn.bias_ih_l0

        def forward(self, x, h, c):
            return as_it_is(self.other, as_it_is(self.one, x, h, c), h, c)

    data = (torch.randn(5, 2, 3), torch.randn(1, 2, 3), torch.randn(1, 2, 3))
    _, facts = capture_model(Pair().eval(), data, ExportOptions())
    assert facts.layers["one"].reason == "it shares its bias_ih_l0 with other"


# --- the order of gates --------------------------------------------------------------------------


@KINDS
@OPSETS
def test_gates_to_onnx_is_what_the_exporters_do(cls, opset):
    rnn = cls(3, 4)
    capture, _ = captured(rnn, opset=opset)
    site = locate_recurrent(main_nodes(capture, "rnn", cls.__name__)[0])
    for array, names in (
        (site.weight, ["weight_ih_l0"]),
        (site.recurrence, ["weight_hh_l0"]),
        (site.bias, ["bias_ih_l0", "bias_hh_l0"]),
    ):
        rows = [gates_to_onnx(rnn.get_parameter(name).detach(), cls.__name__) for name in names]
        np.testing.assert_array_equal(array, torch.cat(rows).numpy()[None])


@pytest.mark.parametrize(("kind", "order"), [("LSTM", [0, 3, 1, 2]), ("GRU", [1, 0, 2])])
def test_gates_move_with_all_their_rows(kind, order):
    rows = torch.arange(24.0).reshape(12, 2)
    gates = rows.chunk(len(order))
    assert torch.equal(gates_to_onnx(rows, kind), torch.cat([gates[gate] for gate in order]))
