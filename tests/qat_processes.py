"""What one process of several does in a test of training in parallel; started by spawn."""

import copy
from collections import Counter

import torch
import torch.distributed as dist
from qat_flow import retrain
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile

BATCHES = 2  # batch_num
STEPS = 3  # after the first batches


def small_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()


def data_of(rank):
    generator = torch.Generator().manual_seed(rank)
    return [(rank + 1) * torch.randn(4, 3, generator=generator) for _ in range(BATCHES + STEPS)]


def learned_scales(config):
    config["batch_num"] = BATCHES
    for layer in ("0", "2"):
        config[layer]["retrain_weight_config"]["algo"] = "ulq_retrain"


def step(model, optimizer, x):
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


def ranges_of(model):
    return {k: v.clone() for k, v in model.state_dict().items() if "acts_clip" in k}


def collectives(function):
    with profile(activities=[ProfilerActivity.CPU]) as record:
        function()
    return Counter(e.name for e in record.events() if e.name.startswith("c10d::"))


def work(rank, world, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=world
    )
    own = folder / str(rank)
    own.mkdir()
    data = data_of(rank)
    flow = retrain(own, small_model(), data[0], learned_scales)
    flow.model.train()
    plain = DistributedDataParallel(copy.deepcopy(flow.float_model).train())
    found = {}

    with torch.no_grad():  # what evaluation shows does not count: other processes may not see it
        flow.model.eval()(100 * data[0])
    flow.model.train()
    found["progress after evaluation"] = flow.model[0].progress()

    gathered = []
    gather = dist.all_gather_object
    dist.all_gather_object = lambda *args: gathered.append(1) or gather(*args)
    parallel = DistributedDataParallel(flow.model)
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.0)
    for x in data[:BATCHES]:
        step(parallel, optimizer, x)
    found["gathers for the first ranges"] = len(gathered)
    found["first ranges"] = ranges_of(flow.model)

    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.1, momentum=0.9)
    of_plain = torch.optim.SGD(plain.parameters(), lr=0.1)
    step(parallel, optimizer, data[BATCHES])
    step(plain, of_plain, data[BATCHES])
    found["collectives"] = collectives(lambda: step(parallel, optimizer, data[BATCHES + 1]))
    found["collectives of plain"] = collectives(lambda: step(plain, of_plain, data[BATCHES + 1]))
    step(parallel, optimizer, data[BATCHES + 2])
    found["gathers"] = len(gathered)
    found["parameters"] = {k: p.detach().clone() for k, p in flow.model.named_parameters()}

    if rank == 0:  # alone: it would wait for ever if it needed the others
        with torch.no_grad():
            flow.model.eval()(data[0])
        found["collectives in evaluation"] = collectives(lambda: flow.model(data[0]))
        flow.save(parallel)
        found["saved"] = flow.run_fake_quant(data[0])
        found["evaluated"] = flow.model(data[0]).detach()
    dist.barrier()
    torch.save(found, own / "found.pt")
    dist.destroy_process_group()
