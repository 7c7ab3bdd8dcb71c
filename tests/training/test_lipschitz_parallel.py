"""LipschitzLR in two real processes over gloo: the same rates everywhere, from all of the data."""

import json
import os
import socket

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lrsearch import LipschitzLR

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch without distributed"
)
ROWS = 16
PROCESSES = 2


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def batches(rank, epoch):
    """Each process has its own; the second one's are larger."""
    generator = torch.Generator().manual_seed(10 * epoch + rank)
    return [(1 + rank) * torch.randn(ROWS, 6, generator=generator) for _ in range(3)]


def wrapped(kind, model):
    if kind == "ddp":
        return nn.parallel.DistributedDataParallel(model)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    return fully_shard(model, mesh=init_device_mesh("cpu", (PROCESSES,)))


def train(rank, kind, port, folder):
    """What a process of the user's does; writes down every rate that it had."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=PROCESSES)
    model = wrapped(kind, network())
    optimizer = torch.optim.SGD(model.parameters(), lr=5.0, momentum=0.9, weight_decay=0.01)
    controller = LipschitzLR(optimizer, model, first_epoch="batch")
    rates, bounds = [], []
    for epoch in range(2):
        for inputs in batches(rank, epoch):
            optimizer.zero_grad()
            cross_entropy(model(inputs), inputs[:, :3].argmax(1)).backward()
            optimizer.step()
            rates.append(controller.lr)
        last = controller.step()
        bounds.append([last.k_z, last.weight_bound, last.lipschitz])
    rates.append(controller.lr)
    (folder / f"{rank}.json").write_text(json.dumps({"rates": rates, "bounds": bounds}))
    torch.distributed.destroy_process_group()


def alone():
    """The same training in one process: the mean of both processes' gradients."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=5.0, momentum=0.9, weight_decay=0.01)
    controller = LipschitzLR(optimizer, model, first_epoch="batch")
    rates = []
    for epoch in range(2):
        for parts in zip(*(batches(rank, epoch) for rank in range(PROCESSES)), strict=True):
            optimizer.zero_grad()
            for inputs in parts:
                (cross_entropy(model(inputs), inputs[:, :3].argmax(1)) / PROCESSES).backward()
            optimizer.step()
            rates.append(controller.lr)
        controller.step()
    rates.append(controller.lr)
    return rates


@pytest.mark.parametrize("kind", ["ddp", "fully_shard"])
def test_processes_agree_and_train_as_one_would(kind, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(train, args=(kind, port, tmp_path), nprocs=PROCESSES)
    first, second = (
        json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(PROCESSES)
    )
    assert first == second
    assert first["rates"] == pytest.approx(alone(), rel=1e-4)
    assert len(set(first["rates"])) == 3  # the first batch's, and one after each epoch


def test_flat_sharded_models_are_refused(monkeypatch):
    from torch.distributed import fsdp

    class Flat(nn.Sequential):
        pass

    monkeypatch.setattr(fsdp, "FullyShardedDataParallel", Flat)
    model = Flat(nn.Linear(2, 3))
    with pytest.raises(ValueError, match="must not be a FullyShardedDataParallel"):
        LipschitzLR(torch.optim.SGD(model.parameters(), lr=0.1), model)
