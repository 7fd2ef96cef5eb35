"""Quantization-aware training in several processes, on the digits classifier of ptq_digits.py.

    torchrun --nproc_per_node=2 examples/qat_ddp.py

Each process trains on its own share of the images. The model gets its quantizers first and is
wrapped in DistributedDataParallel second; the first clip ranges come from what all processes have
seen together. Process 0 evaluates and saves. One GPU for each process, or CPU.
"""

from __future__ import annotations

import argparse
import gc
import os
from pathlib import Path

import torch
import torch.distributed as dist
from ptq_digits import (
    BATCH_SIZE,
    EPOCHS,
    QUICK_EPOCHS,
    load_data,
    print_table,
    run_torch,
    top1,
    train_digits,
)
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import amct_pytorch as amct

LEARNING_RATE = 1e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/qat_ddp"))
    parser.add_argument("--quick", action="store_true", help="train for a few epochs only")
    args = parser.parse_args()
    torch.set_num_threads(1)
    amct.set_logging_level("error", "error")
    cuda = torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
    dist.init_process_group("nccl" if cuda else "gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)

    data = load_data(seed=0)
    epochs = QUICK_EPOCHS if args.quick else EPOCHS
    float_model = train_digits(data, epochs, seed=0).to(device)  # the same in every process
    example = data.train_images[:BATCH_SIZE].to(device)

    folder = args.output_dir / f"process{rank}"
    folder.mkdir(parents=True, exist_ok=True)
    config, record = str(folder / "retrain.json"), str(folder / "record.txt")
    amct.create_quant_retrain_config(config, float_model, example)
    model = amct.create_quant_retrain_model(config, float_model, record, example)
    parallel = DistributedDataParallel(model)

    optimizer = torch.optim.AdamW(parallel.parameters(), lr=LEARNING_RATE)
    torch.manual_seed(1)
    parallel.train()
    for _ in range(max(1, epochs // 4)):
        order = torch.randperm(len(data.train_images))  # the same in every process
        for batch in order.split(BATCH_SIZE * size):
            own = batch[rank::size]
            logits = parallel(data.train_images[own].to(device))
            loss = nn.functional.cross_entropy(logits, data.train_labels[own].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    parameters = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    gathered = [torch.empty_like(parameters) for _ in range(size)]
    dist.all_gather(gathered, parameters)
    agree = all(map(parameters.equal, gathered))
    if rank == 0:
        images, labels = data.test_images.to(device), data.test_labels
        trained = run_torch(model.eval(), images).cpu()
        amct.save_quant_retrain_model(config, parallel, record, str(folder / "digits"), example)
        print_table(
            {
                "top-1, float model": f"{top1(run_torch(float_model, images).cpu(), labels):.2%}",
                f"top-1, trained by {size} processes": f"{top1(trained, labels):.2%}",
                "parameters agree in all processes": "yes" if agree else "no",
                "fake_quant ONNX": str(folder / "digits_fake_quant_model.onnx"),
            }
        )
    # What holds the process group keeps its threads, which must end before Python does.
    del parallel
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
