"""Train mmsegmentation's FCN on generated scenes, on a CPU in under a minute: python examples/train_mmseg.py

The lines that metricseg adds to a usual configuration are marked. In a configuration file the import is
custom_imports = dict(imports=["metricseg.integrations.mmseg"]).
"""

import torch
from mmengine.config import ConfigDict
from mmengine.optim import OptimWrapper
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch.utils.data import DataLoader

import metricseg.integrations.mmseg  # noqa: F401  # metricseg
from metricseg.data import Scenes

SIZE, CLASSES = 96, len(Scenes.classes)
MODEL = ConfigDict(
    type="EncoderDecoder",
    data_preprocessor=dict(type="SegDataPreProcessor", size=(SIZE, SIZE), mean=[127.5] * 3, std=[64.0] * 3),
    backbone=dict(type="ResNetV1c", depth=18, base_channels=16, stem_channels=16, strides=(1, 2, 1, 1)),
    decode_head=dict(
        type="metricseg.FCNHead",  # metricseg
        in_channels=128,
        channels=64,
        num_classes=CLASSES,
        norm_cfg=dict(type="BN"),
        loss_decode=dict(type="metricseg.FocalLoss", gamma=1.0, avg_non_ignore=True),  # metricseg
    ),
    test_cfg=dict(mode="whole"),
)


def packed(images: torch.Tensor, labels: torch.Tensor) -> dict[str, list]:
    """A batch as mmseg's pipelines pack it."""
    meta = dict(img_shape=(SIZE, SIZE), ori_shape=(SIZE, SIZE), pad_shape=(SIZE, SIZE))
    samples = [SegDataSample(gt_sem_seg=PixelData(data=label[None].long()), metainfo=meta) for label in labels]
    return {"inputs": list(images), "data_samples": samples}


def main(steps: int = 40) -> tuple[list[float], float]:
    """(loss of each step, pixel accuracy on new scenes)."""
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmseg"):
        model = MODELS.build(MODEL)
    optimizer = OptimWrapper(torch.optim.AdamW(model.parameters(), lr=2e-3))
    losses = []
    for images, labels in DataLoader(Scenes("train", steps * 8, size=SIZE), batch_size=8):
        losses.append(model.train_step(packed(images, labels), optimizer)["loss"].item())

    model.eval()
    images, labels = next(iter(DataLoader(Scenes("val", 32, size=SIZE), batch_size=32)))
    results = model.test_step(packed(images, labels))
    prediction = torch.stack([result.pred_sem_seg.data[0] for result in results])  # [B, H, W]
    valid = labels != 255
    return losses, float((prediction == labels)[valid].float().mean())


if __name__ == "__main__":
    losses, accuracy = main()
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}, accuracy on new scenes {accuracy:.3f}")
