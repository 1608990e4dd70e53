"""DDP, FSDP, Accelerate, Lightning and Trainer on two processes: the gradients of the host's loss, computed by one."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from rank_processes import run_ranks

pytest.importorskip("torchvision", reason="torchvision is not installed")
import host_ranks

pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="no gloo")
LAUNCHES = {
    "torch": ("ddp", "ddp_with_unused_parameters", "fsdp2", "fsdp1"),
    **{host: (host,) for host in ("accelerate", "lightning", "transformers")},
}


def average_of_the_ranks():
    """Each rank's mean over its own valid pixels, as DistributedDataParallel averages the host's loss."""
    model = host_ranks.network()
    for rank in (0, 1):
        images, labels = host_ranks.batch(rank)
        outputs = model(images)
        out, aux = (F.cross_entropy(outputs[key], labels, ignore_index=255) for key in ("out", "aux"))
        ((out + 0.5 * aux) / 2).backward()
    return host_ranks.gradients(model)


def one_large_batch():
    """The mean over the valid pixels of all ranks and batches, by the model's own loss."""
    model = host_ranks.segformer()
    images, labels = host_ranks.batch()
    model(images, labels=labels).loss.backward()
    return host_ranks.gradients(model)


@pytest.mark.parametrize("host", LAUNCHES)
def test_two_ranks_have_the_gradients_of_the_hosts_loss(host, tmp_path, fresh_processes):
    pytest.importorskip(host, reason=f"{host} is not installed")
    out = tmp_path / "grads.pt"
    run_ranks(fresh_processes, 2, tmp_path, host_ranks.__file__, str(out), *LAUNCHES[host])
    expected = one_large_batch() if host == "transformers" else average_of_the_ranks()
    results = torch.load(out)
    assert tuple(results) == LAUNCHES[host]
    for case, grads in results.items():
        assert grads.keys() == expected.keys(), case
        for name, grad in expected.items():
            error = (grads[name] - grad).norm() / grad.norm().clamp(min=1e-3)
            assert error < 1e-9, (case, name)
