"""Heads of mmsegmentation with a contrast loss and its memory, by configuration."""

import copy
import pickle

import pytest
import torch
from encoder_decoders import MARKS, META, SIZE, K, batch, head, losses_and_gradients, network, scope  # noqa: F401
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.structures import PixelData
from mmseg.models.decode_heads import FCNHead
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch.utils.data import DataLoader

from metricseg.data import Scenes
from metricseg.integrations import mmseg as adapter

pytestmark = MARKS
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
