"""mmsegmentation: real EncoderDecoders with low-resolution heads, against the same with mmseg's own heads and losses.

`mmcv._ext` is a stub where mmcv has no compiled ops (`tests/support/mmseg_site.py`); no test calls one of them.
"""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmseg_site import need_mmseg

need_mmseg()
from mmengine.config import Config, ConfigDict  # noqa: E402
from mmengine.optim import OptimWrapper  # noqa: E402
from mmengine.registry import MODELS as ROOT  # noqa: E402
from mmengine.registry import DefaultScope  # noqa: E402
from mmengine.structures import PixelData  # noqa: E402
from mmseg.models.decode_heads import FCNHead  # noqa: E402
from mmseg.models.losses.focal_loss import py_sigmoid_focal_loss  # noqa: E402
from mmseg.registry import MODELS  # noqa: E402
from mmseg.structures import SegDataSample  # noqa: E402
from tolerances import assert_argmax  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

from metricseg.data import Scenes  # noqa: E402
from metricseg.integrations import mmseg as adapter  # noqa: E402
from metricseg_kernels import predict_labels  # noqa: E402

K, SIZE = 5, 64
NORM = {"type": "BN"}
META = {"img_shape": (SIZE, SIZE), "ori_shape": (SIZE, SIZE), "pad_shape": (SIZE, SIZE)}
pytestmark = pytest.mark.filterwarnings(
    "ignore:``build_loss``",
    "ignore:Default ``avg_non_ignore``",
    "ignore:When align_corners=True",
    "ignore:The shape of",
)


@pytest.fixture(autouse=True)
def scope():
    """What a runner sets from `default_scope = "mmseg"` of every configuration of mmseg."""
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


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("name", ["FCNHead", "ASPPHead", "PSPHead", "UPerHead", "SegformerHead", "FPNHead", "DAHead"])
def test_the_loss_of_mmsegs_own_head(name, align_corners):
    """An auxiliary head too. mmseg's default divides by all pixels, ignored ones included; DAHead has three outputs."""
    more = {"pam_channels": 4} if name == "DAHead" else {}
    size = {} if name != "SegformerHead" else {"align_corners": align_corners}
    options = {"align_corners": align_corners, **more, **size}
    theirs = network(
        head(name, loss_decode={"type": "CrossEntropyLoss"}, **options),
        head(index=2, loss_decode={"type": "CrossEntropyLoss", "loss_weight": 0.4}),
    )
    ours = network(
        head(f"metricseg.{name}", loss_decode={"type": "metricseg.CrossEntropyLoss"}, **options),
        head("metricseg.FCNHead", 2, loss_decode={"type": "metricseg.CrossEntropyLoss", "loss_weight": 0.4}),
    )
    assert_same(ours, theirs, batch())


CONFIGURATIONS = {
    "avg_non_ignore": {"avg_non_ignore": True},
    "named": {"use_sigmoid": False, "loss_name": "loss_mine", "loss_weight": 0.3, "use_mask": False},
    "sum": {"reduction": "sum"},
}


@pytest.mark.parametrize("configuration", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
@pytest.mark.parametrize("prefix", ["", "metricseg."], ids=["mmseg's head", "ours"])
def test_configuration_of_cross_entropy(configuration, prefix):
    """The loss is the same in mmseg's own head, at label size."""
    theirs = network(head(loss_decode={"type": "CrossEntropyLoss", **configuration}))
    ours = network(head(f"{prefix}FCNHead", loss_decode={"type": "metricseg.CrossEntropyLoss", **configuration}))
    assert_same(ours, theirs, batch())


@pytest.mark.parametrize("form", ["list", "npy", "json"])
def test_class_weights(form, tmp_path):
    weights = [1.0, 0.5, 2.0, 0.0, 3.0]
    if form == "npy":
        np.save(tmp_path / "weights.npy", np.array(weights))
    (tmp_path / "weights.json").write_text(str(weights))
    given = weights if form == "list" else str(tmp_path / f"weights.{form}")
    options = {"class_weight": given, "avg_non_ignore": False}
    theirs = network(head(loss_decode={"type": "CrossEntropyLoss", **options}))
    ours = network(head("metricseg.FCNHead", loss_decode={"type": "metricseg.CrossEntropyLoss", **options}))
    assert_same(ours, theirs, batch(ignored=False))
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    with pytest.raises(IndexError):  # theirs indexes the weights with 255
        theirs.loss(*batch())
    images, samples = batch()
    labels = torch.stack([sample.gt_sem_seg.data[0] for sample in samples])
    logits = F.interpolate(ours._forward(images), labels.shape[1:], mode="bilinear")
    expected = F.cross_entropy(logits, labels, logits.new_tensor(weights), ignore_index=255)
    torch.testing.assert_close(ours.loss(images, samples)["decode.loss_ce"], expected)


@pytest.mark.parametrize("ignored", [False, True])
def test_sigmoid_focal_is_mmsegs_focal(ignored):
    """Their formula for the CPU; their module takes a wrong column of the one-hot labels there, and raises."""
    images, samples = batch(ignored=ignored)
    focal = {"gamma": 1.5, "alpha": 0.3}
    ours = network(head("metricseg.FCNHead", loss_decode={"type": "metricseg.SigmoidFocalLoss", **focal}))
    values, grads = losses_and_gradients(ours, images, samples)
    ours.zero_grad()
    labels = torch.stack([sample.gt_sem_seg.data[0] for sample in samples]).flatten()
    logits = F.interpolate(ours._forward(images), (SIZE, SIZE), mode="bilinear").permute(0, 2, 3, 1).reshape(-1, K)
    valid = labels != 255
    expected = py_sigmoid_focal_loss(
        logits, F.one_hot(labels * valid, K), valid_mask=valid[:, None], class_weight=None, **focal
    )
    expected.backward()
    torch.testing.assert_close(values["decode.loss_focal"], expected, rtol=1e-10, atol=0)
    for name, parameter in ours.named_parameters():
        if name in grads and parameter.grad is not None:
            torch.testing.assert_close(grads[name], parameter.grad, rtol=1e-6, atol=1e-10)


def test_binary_cross_entropy_of_one_output():
    options = {"classes": 2, "out_channels": 1, "threshold": 0.5}
    theirs = network(head(loss_decode={"type": "CrossEntropyLoss", "use_sigmoid": True}, **options))
    binary = {"type": "metricseg.SigmoidFocalLoss", "gamma": 0.0, "alpha": -1.0, "loss_name": "loss_ce"}
    ours = network(head("metricseg.FCNHead", loss_decode=binary, **options))
    assert_same(ours, theirs, batch(2), precise=False)  # theirs has labels, and with them losses, in fp32


def test_several_losses_and_names():
    """Losses of one name are added; the first that counts pixels gives acc_seg, another pass if there is none."""
    ce = {"type": "metricseg.CrossEntropyLoss", "loss_name": "loss_a"}
    several = [
        {"type": "metricseg.OhemCrossEntropyLoss", "thresh": 0.5, "min_kept": 100},
        {**ce, "loss_weight": 0.25},
        {"type": "metricseg.FocalLoss", "loss_name": "loss_a", "gamma": 0.0, "loss_weight": 0.75},
        {"type": "metricseg.DiceLoss"},
    ]
    data = batch()
    both = network(head("metricseg.FCNHead", loss_decode=several)).loss(*data)
    one = network(head("metricseg.FCNHead", loss_decode=ce)).loss(*data)
    other = network(head("metricseg.FCNHead", loss_decode=several[0])).loss(*data)
    assert list(both) == ["decode.loss_ohem", "decode.loss_a", "decode.loss_dice", "decode.acc_seg"]
    torch.testing.assert_close(both["decode.loss_a"], one["decode.loss_a"])
    torch.testing.assert_close(both["decode.loss_ohem"], other["decode.loss_ohem"])
    torch.testing.assert_close(both["decode.acc_seg"], one["decode.acc_seg"], rtol=0, atol=0)
    torch.testing.assert_close(other["decode.acc_seg"], one["decode.acc_seg"], rtol=0, atol=0)
    assert 5 < float(one["decode.acc_seg"]) < 50


def test_k_net():
    """IterativeDecodeHead leaves its loss to a head inside it, which is ours."""
    update = {
        "type": "KernelUpdateHead", "num_classes": K, "num_heads": 2, "feedforward_channels": 16, "in_channels": 8,
        "out_channels": 8, "conv_kernel_size": 1, "feat_transform_cfg": {"conv_cfg": {"type": "Conv2d"}},
        "kernel_updator_cfg": {
            "type": "KernelUpdator", "in_channels": 8, "feat_channels": 8, "out_channels": 8,
            "norm_cfg": {"type": "LN"},
        },
    }  # fmt: skip
    models = []
    for prefix in ("", "metricseg."):
        inner = head(f"{prefix}FCNHead", num_convs=1, loss_decode={"type": f"{prefix}CrossEntropyLoss"})
        whole = {"type": "IterativeDecodeHead", "num_stages": 1, "kernel_update_head": [update]}
        models.append(network({**whole, "kernel_generate_head": inner}))
    assert_same(models[1], models[0], batch())


CONTRAST = {"with_memory": True, "memory_size": 64, "proj_dim": 16, "max_views": 4, "loss_weight": 0.1}  # of 8x8 cells


def test_contrast_with_a_memory():
    """The loss is PixelContrastLoss of the projection, its memory has rows of earlier steps, and all else is as it was."""
    config = {"loss_decode": {"type": "metricseg.CrossEntropyLoss"}}
    plain = network(head("metricseg.UPerHead", **config))
    model = network(head("metricseg.UPerHead", contrast=CONTRAST, **config))
    model.load_state_dict(plain.state_dict(), strict=False)
    decode, data = model.decode_head, batch()
    labels = torch.stack([sample.gt_sem_seg.data[0] for sample in data[1]])
    assert decode.contrast.memory.bank.shape == (2 * K * 64 + 1, 16)
    assert model.loss(*data)["decode.loss_contrast"] == 0  # an empty memory
    expected = copy.deepcopy(decode.contrast)

    seen = []
    decode.conv_seg.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    torch.manual_seed(3)
    values, grads = losses_and_gradients(model, *data)
    logits = decode.conv_seg(seen[0])
    torch.manual_seed(3)
    alone = expected(decode.contrast_projection(seen[0]), labels, logits)
    assert values["decode.loss_contrast"] > 0
    torch.testing.assert_close(values["decode.loss_contrast"], alone, rtol=1e-10, atol=0)
    rows = decode.contrast.memory.bank[decode.contrast.memory.bank.any(1)]
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(rows), dtype=rows.dtype))

    host, host_grads = losses_and_gradients(plain, *data)
    torch.testing.assert_close(values["decode.loss_ce"], host["decode.loss_ce"], rtol=0, atol=0)
    assert grads["decode_head.contrast_projection.weight"].any()
    name = "backbone.layer1.0.conv1.weight"
    assert not torch.equal(grads[name], host_grads[name])


def test_contrast_from_a_configuration_file(tmp_path):
    """Three lines beside the import; an EncoderDecoder trains, is saved and goes on, and predicts as before."""
    path = tmp_path / "config.py"
    path.write_text(
        'custom_imports = dict(imports=["metricseg.integrations.mmseg"])\n'
        "decode_head = dict(\n"
        '    type="metricseg.FCNHead",\n'
        '    loss_decode=dict(type="metricseg.CrossEntropyLoss", avg_non_ignore=True),\n'
        "    contrast=dict(with_memory=True, memory_size=8, proj_dim=16, max_views=4, loss_weight=0.1),\n"
        "    in_channels=16, in_index=1, channels=8, num_classes=7, norm_cfg=dict(type='BN'), dropout_ratio=0.0,\n"
        ")\n"
    )
    model = network(Config.fromfile(path).decode_head).float().train()
    optimizer = OptimWrapper(torch.optim.AdamW(model.parameters(), lr=5e-3))
    logs = []
    for images, labels in DataLoader(Scenes("train", 30 * 4, size=SIZE), batch_size=4):
        samples = [SegDataSample(gt_sem_seg=PixelData(data=label[None].long()), metainfo=META) for label in labels]
        data = {"inputs": list((images.float() - 127.5) / 64), "data_samples": samples}
        logs.append(model.train_step(data, optimizer))
    contrast = [log["decode.loss_contrast"].item() for log in logs]
    assert contrast[0] == 0 < contrast[1]  # an empty memory first, full rings soon
    assert sum(contrast[-5:]) < 0.95 * sum(contrast[5:10]) and logs[-1]["loss"] < logs[5]["loss"]

    twin = network(Config.fromfile(path).decode_head).float()
    twin.load_state_dict(pickle.loads(pickle.dumps(model.state_dict())))
    torch.testing.assert_close(twin.decode_head.contrast.memory.bank, model.decode_head.contrast.memory.bank)
    model.eval()
    assert "decode.loss_contrast" not in model.loss(torch.stack(data["inputs"]), samples)
    expected = network(head(index=1, classes=7)).float().eval()
    expected.load_state_dict(model.state_dict(), strict=False)
    for ours, theirs in zip(model.test_step(data), expected.test_step(data), strict=True):
        torch.testing.assert_close(ours.seg_logits.data, theirs.seg_logits.data, rtol=0, atol=0)


@pytest.mark.parametrize("case", ["several outputs", "one logit", "auxiliary"])
def test_contrast_of_other_heads(case):
    """Once per step for a head of several outputs; a binary head; in an auxiliary head, and without a memory."""
    config = {"loss_decode": {"type": "metricseg.CrossEntropyLoss"}, "contrast": {**CONTRAST, "with_memory": False}}
    if case == "several outputs":
        model = network(head("metricseg.DAHead", 1, pam_channels=4, **config))
    elif case == "one logit":
        config["loss_decode"] = {"type": "metricseg.SigmoidFocalLoss"}
        model = network(head("metricseg.FCNHead", 1, classes=2, out_channels=1, threshold=0.5, **config))
    else:
        model = network(head(loss_decode={"type": "CrossEntropyLoss"}), head("metricseg.FCNHead", 1, **config))
    values = model.loss(*batch(2 if case == "one logit" else K))
    found = {name: value.item() for name, value in values.items() if "contrast" in name}
    prefix = {"several outputs": "decode.pam_cam.", "one logit": "decode.", "auxiliary": "aux."}[case]
    assert list(found) == [f"{prefix}loss_contrast"] and found[f"{prefix}loss_contrast"] > 0


def test_refused_contrast():
    config = {"loss_decode": {"type": "metricseg.CrossEntropyLoss"}}
    for key in ("num_classes", "ignore_index"):
        with pytest.raises(ValueError, match=f"contrast has no {key}, got 3; the head's own is taken"):
            MODELS.build(head("metricseg.FCNHead", contrast={key: 3}, **config))
    with pytest.raises(TypeError, match="temprature"):
        MODELS.build(head("metricseg.FCNHead", contrast={"temprature": 0.1}, **config))

    class Unusual(FCNHead):
        def forward(self, inputs):
            return self.conv_seg(self._forward_feature(inputs))

    options = head(contrast=CONTRAST, **config)
    options.pop("type")
    unusual = adapter.low_resolution(Unusual)(**options)
    with pytest.raises(TypeError, match="Unusual takes no contrast: it does not classify features by cls_seg"):
        unusual.loss([torch.zeros(2, 64, 2, 2)] * 4, batch()[1], {})


def test_autocast():
    """bfloat16 logits give a float32 loss, near that of float32."""
    model = network(head("metricseg.FCNHead", loss_decode={"type": "metricseg.CrossEntropyLoss"})).float()
    images, samples = batch()
    exact = model.loss(images.float(), samples)["decode.loss_ce"]
    with torch.autocast("cpu", torch.bfloat16):
        value = model.loss(images.float(), samples)["decode.loss_ce"]
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, exact, rtol=0.05, atol=0)


def test_a_batch_of_ignored_pixels():
    theirs = network(head(loss_decode={"type": "CrossEntropyLoss", "avg_non_ignore": True}))
    ours = network(
        head("metricseg.FCNHead", loss_decode={"type": "metricseg.CrossEntropyLoss", "avg_non_ignore": True})
    )
    images, samples = batch()
    for sample in samples:
        sample.gt_sem_seg.data.fill_(255)
    assert_same(ours, theirs, (images, samples))


def test_training_steps_and_prediction():
    """By mmengine's train_step in float32: the loss falls, nothing of label size is made, prediction is mmseg's."""
    options = {"type": "metricseg.FocalLoss", "gamma": 1.0}
    auxiliary = [head("metricseg.FCNHead", i, loss_decode={**options, "loss_weight": 0.4}) for i in (1, 2)]
    model = network(head("metricseg.FCNHead", loss_decode=options), auxiliary).float()
    optimizer = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9))
    images, samples = batch()
    data = {"inputs": list(images.float()), "data_samples": samples}
    logs = [model.train_step(data, optimizer) for _ in range(6)]
    assert set(logs[0]) == {
        "loss", *(f"{name}.{key}" for name in ("decode", "aux_0", "aux_1") for key in ("loss_focal", "acc_seg"))
    }  # fmt: skip
    assert float(logs[-1]["loss"]) < float(logs[0]["loss"])
    host = network(head(loss_decode={"type": "CrossEntropyLoss"}), [head(index=1), head(index=2)]).float()
    host.load_state_dict(model.state_dict())
    for expected, got in zip(host.eval().test_step(data), model.eval().test_step(data), strict=True):
        assert got.pred_sem_seg.data.shape == (1, SIZE, SIZE)
        torch.testing.assert_close(got.seg_logits.data, expected.seg_logits.data, rtol=0, atol=0)


def view(image, scale, flip):
    """A batch of one resized and mirrored copy of a picture, as mmseg's TestTimeAug and loader pass it."""
    size = (round(SIZE * scale), round(SIZE * scale))
    image = F.interpolate(image[None], size, mode="bilinear")[0]
    meta = {**META, "img_shape": size, "pad_shape": size, "flip": flip, "flip_direction": "horizontal"}
    return image.flip(-1) if flip else image, SegDataSample(metainfo={**meta, "img_path": ""})


@pytest.mark.parametrize("align_corners", [False, True])
def test_predict_labels_is_mmsegs_prediction(align_corners):
    """Heads of any kind predict from their small logits."""
    model = network(head("UPerHead", align_corners=align_corners)).float().eval()
    images = batch()[0].float()
    with torch.no_grad():
        results = model(images, mode="predict")
        labels = predict_labels(model(images, mode="tensor"), (SIZE, SIZE), align_corners=model.align_corners)
    logits = torch.stack([result.seg_logits.data for result in results])
    assert_argmax(labels, logits, torch.cat([result.pred_sem_seg.data for result in results]))


@pytest.mark.parametrize("scales", [(1.0,), (0.75, 1.0, 1.5)], ids=["mirrored", "scales"])
def test_predict_labels_is_mmsegs_test_time_augmentation(scales):
    """Logits of the size of a view are SegTTAModel's at every scale; the head's own, which it resizes twice, at 1."""
    model = network(head("UPerHead", align_corners=True)).float().eval()
    image = batch()[0][0].float()
    views = [view(image, scale, flip) for scale in scales for flip in (False, True)]
    data = {"inputs": [[pixels] for pixels, _ in views], "data_samples": [[sample] for _, sample in views]}
    tta = MODELS.build({"type": "SegTTAModel", "module": model})
    with torch.no_grad():
        samples = [model.test_step({key: value[i] for key, value in data.items()})[0] for i in range(len(views))]
        (result,) = tta.test_step(data)
        if len(scales) == 1:
            maps = [model(pixels[None], mode="tensor") for pixels, _ in views]
        else:
            maps = [model.inference(pixels[None], [sample.metainfo]) for pixels, sample in views]
    labels = predict_labels(maps, (SIZE, SIZE), flipped=[False, True] * len(scales), align_corners=model.align_corners)
    mean = torch.stack([sample.seg_logits.data.softmax(0) for sample in samples]).mean(0)
    assert_argmax(labels, mean[None], result.pred_sem_seg.data)


def test_nothing_of_label_size_is_made():
    """No floating tensor as large as the upsampled logits is saved or made on the way from head to loss."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            output = function(*arguments, **(options or {}))
            for one in output if isinstance(output, tuple | list) else (output,):
                if isinstance(one, torch.Tensor) and one.is_floating_point():
                    self.elements = max(self.elements, one.numel())
            return output

    largest, (_, samples) = {}, batch()
    for prefix in ("", "metricseg."):
        module = MODELS.build(head(f"{prefix}FCNHead", loss_decode={"type": "metricseg.CrossEntropyLoss"}))
        logits = torch.randn(2, K, 8, 8, requires_grad=True)
        with Largest() as mode:
            module.loss_by_feat(logits, samples)["loss_ce"].backward()
        largest[prefix] = mode.elements
    assert largest[""] >= 2 * K * SIZE * SIZE > 2 * SIZE * SIZE >= largest["metricseg."]


def test_custom_imports_and_scopes(tmp_path):
    """As in a configuration file: mmseg's names stay its own, and mmengine's root finds ours under mmseg's scope."""
    path = tmp_path / "config.py"
    path.write_text('custom_imports = dict(imports=["metricseg.integrations.mmseg"])\nloss = dict(type="FocalLoss")\n')
    assert type(MODELS.build(Config.fromfile(path).loss)).__module__.startswith("mmseg.")
    assert type(ROOT.build({"type": "metricseg.FocalLoss"})) is adapter.FocalLoss
    assert MODELS.get("FCNHead") is FCNHead and issubclass(MODELS.get("metricseg.FCNHead"), FCNHead)


def test_heads_and_copies():
    """All heads of mmseg but six have a twin; those say why not. Models can be pickled and copied."""
    twins = {name for name, found in adapter.REGISTRY.module_dict.items() if isinstance(found, type)}
    heads = twins - set(adapter.LOSSES)
    assert len(heads) == 28 and set(adapter.REGISTRY.module_dict) - twins == {
        "DDRHead", "PIDHead", "PointHead", "VPDDepthHead", "SideAdapterCLIPHead", "IterativeDecodeHead"
    }  # fmt: skip
    model = network(head("metricseg.FCNHead", loss_decode={"type": "metricseg.CrossEntropyLoss"}))
    data = batch()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(twin.loss(*data), model.loss(*data))

    class MyHead(FCNHead):
        def loss_by_feat(self, seg_logits, batch_data_samples):
            return {"mine": super().loss_by_feat(seg_logits, batch_data_samples)["loss_ce"]}

    options = head(loss_decode={"type": "metricseg.CrossEntropyLoss"})
    options.pop("type")
    mine = adapter.low_resolution(MyHead)(**options)
    assert mine.loss_by_feat(torch.randn(2, K, 8, 8), data[1])["mine"].isfinite()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"type": "CrossEntropyLoss", "use_sigmoid": True}, r"use_sigmoid=False; for True write .*SigmoidFocalLoss.*gamma"),
        ({"type": "CrossEntropyLoss", "use_mask": True}, "has no use_mask, got True; it is for mask classification"),
        ({"type": "FocalLoss", "use_sigmoid": True}, "use_sigmoid=False; for True write"),
        ({"type": "FocalLoss", "alpha": 0.25}, "has no alpha, got 0.25; write class_weight, or write type="),
        ({"type": "SigmoidFocalLoss", "use_sigmoid": False}, 'for False write type="metricseg.FocalLoss"'),
        ({"type": "SigmoidFocalLoss", "alpha": [0.5, 0.5]}, r"alpha is \[0.5, 0.5\]; it takes one number"),
        ({"type": "SigmoidFocalLoss", "class_weight": [1.0, 2.0]}, "class_weight has no meaning"),
        ({"type": "OhemCrossEntropyLoss", "thres": 0.7}, "has no thres, got 0.7; write thresh"),
        ({"type": "OhemCrossEntropyLoss", "ignore_label": 0}, "has no ignore_label, got 0; the head's ignore_index"),
        ({"type": "OhemCrossEntropyLoss", "avg_non_ignore": True}, "the mean is over the kept pixels"),
        ({"type": "DiceLoss", "naive_dice": True}, "has no naive_dice"),
        ({"type": "DiceLoss", "use_sigmoid": True}, "use_sigmoid=False; for True"),
        ({"type": "CrossEntropyLoss", "align_corners": True}, "has no align_corners, got True; the head's own is taken"),
        ({"type": "CrossEntropyLoss", "reduction": "average"}, "reduction is 'average'"),
    ],
)  # fmt: skip
def test_refused_configuration(config, words):
    with pytest.raises(ValueError, match=words):
        MODELS.build({**config, "type": f"metricseg.{config['type']}"})


def test_refused_heads():
    ours = {"loss_decode": {"type": "metricseg.CrossEntropyLoss"}}
    with pytest.raises(ValueError, match="sampler is OHEMPixelSampler, .*metricseg.OhemCrossEntropyLoss"):
        MODELS.build(head("metricseg.FCNHead", sampler={"type": "OHEMPixelSampler"}, **ours))
    with pytest.raises(TypeError, match=r"loss_decode has LovaszLoss.*write one of metricseg.CrossEntropyLoss, "):
        lovasz = {"type": "LovaszLoss", "reduction": "none"}
        MODELS.build(head("metricseg.FCNHead", loss_decode=[ours["loss_decode"], lovasz]))
    with pytest.raises(TypeError, match=r'DDRHead computes its loss itself, .* write type="DDRHead"'):
        MODELS.build(head("metricseg.DDRHead"))
    with pytest.raises(TypeError, match="head is <class 'int'>; it takes a subclass of mmseg's BaseDecodeHead"):
        adapter.low_resolution(int)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sampled = network(head(sampler={"type": "OHEMPixelSampler", "thresh": 0.7, "min_kept": 10}, **ours))
    assert sampled.loss(*batch())["decode.loss_ce"].isfinite()  # at label size a sampler's weights are taken
