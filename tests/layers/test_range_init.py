"""The search for the first clip range belongs to one module, whatever copies its tensors."""

import copy

import pytest
import torch
from torch import nn

from amct_pytorch.layers.learned_range import LearnedRange
from amct_pytorch.layers.range_init import RangeOptions

BATCH = torch.tensor([-1.0, 1.0])


class OneRange(LearnedRange):
    def __init__(self, batch_num=1):
        super().__init__()
        self.add_range("layer", RangeOptions(batch_num=batch_num))

    def forward(self, x):
        self.observe_input(x)
        return self.quantize_input(x)


def clip_max(model):
    return model.acts_clip_max.item()


def test_a_model_average_evaluated_between_the_first_batches_leaves_the_model_alone():
    alone, model = OneRange(batch_num=2), OneRange(batch_num=2)
    average = torch.optim.swa_utils.AveragedModel(model)
    for one in (alone, model):
        one(BATCH)
    average.update_parameters(model)  # copies the buffers
    average.eval()(BATCH * 100)
    assert model.range_init().progress == (1, 2)
    for one in (alone, model):
        one(BATCH * 2)
    assert clip_max(model) == clip_max(alone)


def test_buffers_from_a_process_that_made_more_models_are_taken():
    """DistributedDataParallel writes the buffers of rank 0 into those of the other ranks."""
    model, of_rank_0 = OneRange(), OneRange()
    with torch.no_grad():
        for own, other in zip(model.buffers(), of_rank_0.buffers(), strict=True):
            own.copy_(other)
    del of_rank_0, other
    model(BATCH)
    assert model.range_init().done


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy], ids=["copy", "deepcopy"])
def test_a_copy_of_the_search_takes_nothing_from_its_original(copied):
    model = nn.Sequential(OneRange())
    other = copied(model[0].range_init())
    del other
    model(BATCH)
    assert model[0].range_init().done
