"""mmsegmentation: EncoderDecoders with low-resolution heads, against the same with mmseg's own heads and losses."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from encoder_decoders import MARKS, SIZE, K, assert_same, batch, head, losses_and_gradients, network, scope  # noqa: F401
from mmengine.config import Config
from mmengine.registry import MODELS as ROOT
from mmseg.models.decode_heads import FCNHead
from mmseg.models.losses.focal_loss import py_sigmoid_focal_loss
from mmseg.registry import MODELS

from metricseg.integrations import mmseg as adapter

pytestmark = MARKS


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
