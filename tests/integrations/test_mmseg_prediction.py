"""mmsegmentation's prediction: after training with low-resolution heads, and by predict_labels."""

import pytest
import torch
import torch.nn.functional as F
from encoder_decoders import MARKS, META, SIZE, batch, head, network, scope  # noqa: F401
from mmengine.optim import OptimWrapper
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from tolerances import assert_argmax

from metricseg_kernels import predict_labels

pytestmark = MARKS


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
