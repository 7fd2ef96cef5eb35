"""The shift factor N of a trained model: found in evaluation after training, then recorded."""

import re
from pathlib import Path

import pytest
import torch
from qat_flow import retrain, train
from torch import nn

IMAGES = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def trained(folder: Path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)).eval()
    flow = retrain(folder, model, IMAGES, lambda config: config.update(shift_n=True, batch_num=2))
    train(flow.model, [IMAGES], steps=2)
    return flow


def evaluate(model: nn.Module, batches: int) -> None:
    model.eval()
    with torch.no_grad():
        for _ in range(batches):
            model(IMAGES)


def shift_bits(flow) -> list[int]:
    return [int(n) for n in re.findall(r"shift_bit: (\d+)", Path(flow.record_file).read_text())]


def test_every_channel_of_a_layer_has_a_shift(tmp_path: Path) -> None:
    flow = trained(tmp_path)
    evaluate(flow.model, 2)
    flow.save()
    assert len(shift_bits(flow)) == 4 + 1
    assert all(1 <= n <= 16 for n in shift_bits(flow))


def test_saving_too_early_names_layers_and_counts(tmp_path: Path) -> None:
    flow = trained(tmp_path)
    evaluate(flow.model, 1)
    with pytest.raises(RuntimeError, match='"0" has seen 1 of 2, "3" has seen 1 of 2'):
        flow.save()


def test_training_starts_the_search_anew(tmp_path: Path) -> None:
    flow = trained(tmp_path)
    evaluate(flow.model, 2)
    train(flow.model, [IMAGES])
    with pytest.raises(RuntimeError, match='"0" has seen 0 of 2'):
        flow.save()


def test_evaluation_agrees_with_the_exported_graph(tmp_path: Path) -> None:
    flow = trained(tmp_path)
    evaluate(flow.model, 2)
    flow.save()
    torch.testing.assert_close(flow.model(IMAGES), flow.run_fake_quant(IMAGES))
