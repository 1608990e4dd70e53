"""One process of two: `torchrun --nproc-per-node 2 tests/integrations/host_ranks.py OUT CASE ...`.

torchvision's FCN after low_resolution, and its criterion, under a host's way to train on several processes. Each rank
has two of four images. Rank 0 writes the gradients of the network. "transformers" is a SegFormer under Trainer.
"""

import os
import sys

import torch
import torch.distributed as dist
from torch import nn
from torchvision.models import segmentation

from metricseg.integrations.torchvision import low_resolution, torchvision_loss
from metricseg.losses import CrossEntropyLoss

K, SIZE = 5, 64


class Backbone(nn.Module):
    """Two stages, without batch normalization: a gradient of four images is the mean of two of two."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 8, stride=8), nn.Conv2d(8, 16, 2, stride=2)

    def forward(self, x):
        stage = self.first(x).tanh()
        return {"out": self.second(stage).tanh(), "aux": stage}


def network():
    torch.manual_seed(0)
    model = segmentation.FCN(Backbone(), segmentation.fcn.FCNHead(16, K), segmentation.fcn.FCNHead(8, K)).double()
    for head in (model.classifier, model.aux_classifier):
        head[1], head[3] = nn.Identity(), nn.Identity()  # batch normalization and dropout
    return model


def batch(rank=None):
    """Images [4, 3, 64, 64] and labels [4, 64, 64] with unlike numbers of ignored pixels; a rank's half of them."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(4, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, K, (4, SIZE, SIZE), generator=generator)
    for i in range(4):
        labels[i, : 8 * i] = 255
    return (images, labels) if rank is None else (images[2 * rank :][:2], labels[2 * rank :][:2])


def step(model, rank):
    criterion = torchvision_loss(CrossEntropyLoss())
    images, labels = batch(rank)
    criterion(model(images), labels).backward()


def ddp(rank, **options):
    model = low_resolution(network())
    step(nn.parallel.DistributedDataParallel(model, **options), rank)
    return gradients(model)


def ddp_with_unused_parameters(rank):
    return ddp(rank, find_unused_parameters=True)


def fsdp2(rank):
    """The heads are units of their own, and the rest is another."""
    from torch.distributed.fsdp import fully_shard

    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    model = low_resolution(network())
    for unit in (model.classifier, model.aux_classifier, model):
        fully_shard(unit, mesh=mesh)
    step(model, rank)
    return {name: p.grad.full_tensor() for name, p in model.named_parameters() if p.grad is not None}


def fsdp1(rank):
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = low_resolution(network())
    model.classifier = FullyShardedDataParallel(model.classifier, use_orig_params=True, device_id=torch.device("cpu"))
    model = FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))
    step(model, rank)
    with FullyShardedDataParallel.summon_full_params(model, with_grads=True):
        grads = gradients(model)
    return {name.replace("_fsdp_wrapped_module.", ""): grad for name, grad in grads.items()}


def accelerate(rank):
    from accelerate import Accelerator

    accelerator, model = Accelerator(cpu=True), low_resolution(network())
    wrapped = accelerator.prepare(model)
    images, labels = batch(rank)
    accelerator.backward(torchvision_loss(CrossEntropyLoss())(wrapped(images), labels))
    return gradients(model)


def lightning(rank):
    """A step of gradient descent at rate 1."""
    import lightning

    class Task(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.network, self.criterion = low_resolution(network()), torchvision_loss(CrossEntropyLoss())

        def training_step(self, batch):
            return self.criterion(self.network(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1.0)

    task = Task()
    trainer = lightning.Trainer(
        max_steps=1, accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(task, torch.utils.data.DataLoader([batch(rank)], batch_size=None))
    return moved(network(), task.network)


def segformer():
    """Without batch normalization, whose result depends on how many images there are."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    torch.manual_seed(0)
    config = SegformerConfig(
        num_labels=K, depths=[1] * 4, hidden_sizes=[8, 8, 16, 16], num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16, drop_path_rate=0.0, classifier_dropout_prob=0.0, hidden_dropout_prob=0.0,
    )  # fmt: skip
    model = SegformerForSemanticSegmentation(config).double().train()
    model.decode_head.batch_norm = nn.Identity()
    return model


def transformers(rank):
    """A step of gradient descent at rate 1, of two batches of one image on each rank."""
    from transformers import Trainer, TrainingArguments

    from metricseg.integrations.transformers import count_valid_pixels, hf_loss

    model = segformer()
    arguments = TrainingArguments(
        f"{sys.argv[1]}.folder", max_steps=1, per_device_train_batch_size=1, gradient_accumulation_steps=2,
        learning_rate=1.0, optim="sgd", lr_scheduler_type="constant", max_grad_norm=0.0, report_to=[], use_cpu=True,
        ddp_backend="gloo", save_strategy="no", disable_tqdm=True, average_tokens_across_devices=True,
        dataloader_pin_memory=False,
    )  # fmt: skip
    data = [{"pixel_values": image, "labels": label} for image, label in zip(*batch(), strict=True)]
    trainer = Trainer(
        model=model, args=arguments, train_dataset=data, compute_loss_func=hf_loss(CrossEntropyLoss(), model)
    )
    count_valid_pixels(trainer)
    trainer.train()
    return moved(segformer(), model)


def moved(before, after):
    """The gradients of a step at rate 1."""
    pairs = zip(before.named_parameters(), after.parameters(), strict=True)
    return {name: (p - q).detach() for (name, p), q in pairs}


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


CASES = {
    case.__name__: case for case in (ddp, ddp_with_unused_parameters, fsdp2, fsdp1, accelerate, lightning, transformers)
}

if __name__ == "__main__":
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    grads = {name: CASES[name](rank) for name in sys.argv[2:]}
    if rank == 0:
        torch.save(grads, sys.argv[1])
    if dist.is_initialized():  # Lightning has ended it
        dist.destroy_process_group()
    os._exit(0)  # a thread of torch.distributed that still runs can abort an interpreter that ends by itself
