"""What quantization-aware training is for: it wins back what few bits cost.

A network of 4 channels has nothing to spare: post-training quantization to 4-bit weights costs it
points of accuracy on digits, some of which training finds again.
"""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

from ptq_digits import BATCH_SIZE, load_data, run_onnx, run_torch, top1
from qat_digits import Retraining, quantize_after_training

WIDTH, EPOCHS, RETRAINED_EPOCHS = 4, 12, 4


def small_network():
    return nn.Sequential(
        nn.Conv2d(1, WIDTH, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(WIDTH, 2 * WIDTH, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * WIDTH, 10),
    )


def trained(data, seed):
    torch.manual_seed(seed)
    model, count = small_network(), len(data.train_images)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    steps = -(-count // BATCH_SIZE) * EPOCHS
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=steps)
    for _ in range(EPOCHS):
        for batch in torch.randperm(count).split(BATCH_SIZE):
            logits = model(data.train_images[batch])
            loss = nn.functional.cross_entropy(logits, data.train_labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_training_beats_calibration_with_4_bit_weights(tmp_path, seed):
    data = load_data(seed)
    model = trained(data, seed)
    images, labels = data.test_images, data.test_labels
    retraining = Retraining(model, data, "INT4", tmp_path)
    calibrated = quantize_after_training(model, data, 4, tmp_path)
    retrained = retraining.train_in_two_parts(RETRAINED_EPOCHS)
    before = top1(run_onnx(calibrated, images, BATCH_SIZE), labels)
    after = top1(run_onnx(retraining.save(retrained), images, BATCH_SIZE), labels)
    assert after > before


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_training_with_8_bits_stays_within_half_a_point_of_float(tmp_path, seed):
    data = load_data(seed)
    model = trained(data, seed)
    images, labels = data.test_images, data.test_labels
    retraining = Retraining(model, data, "INT8", tmp_path)
    retrained = retraining.train_in_two_parts(RETRAINED_EPOCHS)
    after = top1(run_onnx(retraining.save(retrained), images, BATCH_SIZE), labels)
    assert after >= top1(run_torch(model, images), labels) - 0.005
