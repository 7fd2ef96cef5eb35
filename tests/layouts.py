"""The ways a tensor can lie in memory, as functions that lay out a 4-d tensor."""

import torch

LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(1, 3),
    "sliced": lambda x: torch.cat([x, x], -1)[:, 1:, :, ::2],
    "expanded": lambda x: x[:, :1].expand_as(x),
    "unit_dimension": lambda x: x[:, :1],
    "no_elements": lambda x: x[:, :, :0],
}
