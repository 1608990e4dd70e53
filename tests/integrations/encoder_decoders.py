"""EncoderDecoders of mmsegmentation, small and in fp64, and what their tests share.

`mmcv._ext` is a stub where mmcv has no compiled ops (`tests/support/mmseg_site.py`); no test calls one of them.
"""

import pytest
import torch
from mmseg_site import need_mmseg

need_mmseg()
from mmengine.config import ConfigDict  # noqa: E402
from mmengine.registry import DefaultScope  # noqa: E402
from mmengine.structures import PixelData  # noqa: E402
from mmseg.registry import MODELS  # noqa: E402
from mmseg.structures import SegDataSample  # noqa: E402

import metricseg.integrations.mmseg  # noqa: E402, F401

K, SIZE = 5, 64
NORM = {"type": "BN"}
META = {"img_shape": (SIZE, SIZE), "ori_shape": (SIZE, SIZE), "pad_shape": (SIZE, SIZE)}
MARKS = [
    pytest.mark.usefixtures("scope"),
    pytest.mark.filterwarnings(
        "ignore:``build_loss``",
        "ignore:Default ``avg_non_ignore``",
        "ignore:When align_corners=True",
        "ignore:The shape of",
    ),
]


@pytest.fixture
def scope():
    """The default scope that a runner takes from a configuration of mmseg."""
    with DefaultScope.overwrite_default_scope("mmseg"):
        yield


def head(type="FCNHead", index=3, classes=K, **options):
    channels = {"in_channels": 8 * 2**index, "in_index": index}
    if type.endswith("ASPPHead"):
        channels["dilations"] = (1, 2)
    elif type.endswith(("UPerHead", "SegformerHead")):
        channels = {"in_channels": [8, 16, 32, 64], "in_index": [0, 1, 2, 3]}
    elif type.endswith("FPNHead"):
        channels = {"in_channels": [8, 16], "in_index": [0, 1], "feature_strides": [4, 8]}
    base = {"type": type, "channels": 8, "num_classes": classes, "norm_cfg": NORM, "dropout_ratio": 0.0}
    return {**base, **channels, **options}


def network(decode_head, auxiliary_head=None):
    """An EncoderDecoder on a ResNet of 8 channels, in fp64, whose training forward is a function."""
    torch.manual_seed(0)
    model = MODELS.build(
        {
            "type": "EncoderDecoder",
            "data_preprocessor": {"type": "SegDataPreProcessor", "size": (SIZE, SIZE), "mean": [0] * 3, "std": [1] * 3},
            "backbone": {
                "type": "ResNetV1c", "depth": 18, "base_channels": 8, "stem_channels": 8, "norm_cfg": NORM,
                "num_stages": 4, "out_indices": (0, 1, 2, 3),
            },
            "decode_head": decode_head,
            "auxiliary_head": auxiliary_head,
            "train_cfg": {},
            "test_cfg": ConfigDict(mode="whole"),
        }
    )  # fmt: skip
    with torch.no_grad():  # mmseg starts classifiers at a std of 0.01, where every loss is log K
        for name, weight in model.named_parameters():
            if "conv_seg" in name:
                weight.normal_(generator=torch.Generator().manual_seed(1))
    model.double().train()
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
    return model


def batch(classes=K, ignored=True):
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(2, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, classes, (2, 1, SIZE, SIZE), generator=generator)
    if ignored:
        labels[:, :, :7] = 255
    return images, [SegDataSample(gt_sem_seg=PixelData(data=label), metainfo=META) for label in labels]


def losses_and_gradients(model, images, samples):
    values = model.loss(images, samples)
    model.zero_grad()
    sum(value for name, value in values.items() if "loss_" in name).backward()
    return values, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same(ours, theirs, data, precise=True):
    """Every loss and acc_seg by its name, and the gradient of every parameter; `precise` if theirs is fp64 too."""
    ours.load_state_dict(theirs.state_dict())
    (values, grads), (expected, expected_grads) = (losses_and_gradients(m, *data) for m in (ours, theirs))
    assert list(values) == list(expected) and grads.keys() == expected_grads.keys()
    for key, value in expected.items():
        rtol = 1e-10 if precise and "acc_seg" not in key else 1e-6  # mmseg's accuracy is in fp32
        assert values[key].shape == value.shape
        torch.testing.assert_close(values[key].double(), value.double(), rtol=rtol, atol=0)
    for key, value in expected_grads.items():
        torch.testing.assert_close(
            grads[key], value, rtol=1e-6, atol=1e-10 if precise else 1e-7, msg=lambda text, key=key: f"{key}: {text}"
        )
    return values
