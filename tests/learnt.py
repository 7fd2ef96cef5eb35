"""What the tests of the ops for training have in common."""

import torch
from torch.profiler import ProfilerActivity, profile

FLOATING = [torch.float32, torch.float16, torch.bfloat16]


def straight_through_round(x, x32):
    """x, rounded as its float32 value `x32` is, on whichever side of a tie that lies."""
    return x + (x32.round() - x32).double().detach()


def names_of_operations(function):
    """What torch runs in `function`, forward and backward, by name."""
    with profile(activities=[ProfilerActivity.CPU]) as record:
        function()
    return {event.name for event in record.events()}


def assert_no_host_reads(function):
    names = names_of_operations(function)
    assert any(name.startswith("amct_pytorch::") for name in names)
    assert names & {"aten::_local_scalar_dense", "aten::is_nonzero", "aten::item"} == set()


def permuted(weight, groups):
    """[in, out/g, ...] in groups as [out, in/g, ...], whose channels are dimension 0."""
    inputs, outputs, *kernel = weight.shape
    blocks = weight.reshape(groups, inputs // groups, outputs, *kernel).transpose(1, 2)
    return blocks.reshape(groups * outputs, inputs // groups, *kernel)


# (shape of a transposed convolution's weight, groups)
GROUPED = [
    ((6, 5, 3, 3), 2),
    ((6, 5, 3, 3), 3),
    ((6, 1, 3), 6),
    ((6, 4), 2),
    ((6, 1), 3),
    ((4, 300, 70), 2),
    ((64, 40, 9), 4),
    ((6, 0, 3), 2),
    ((0, 3, 3), 2),
]
