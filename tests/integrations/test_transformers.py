"""transformers: each model's own loss, by hf_loss; gradient accumulation equals one large batch."""

import copy
import re

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from metricseg.integrations.transformers import count_valid_pixels, hf_loss, low_resolution  # noqa: E402
from metricseg.losses import CrossEntropyLoss, DiceLoss, FocalLoss, SigmoidFocalLoss  # noqa: E402
from metricseg_kernels import predict_labels  # noqa: E402

K, SIZE = 5, 64
VIT = dict(
    hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32, image_size=SIZE,
    hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, drop_path_rate=0.0, num_labels=K,
)  # fmt: skip


def segformer(**options):
    config = transformers.SegformerConfig(
        num_labels=K, depths=[1] * 4, hidden_sizes=[8, 8, 16, 16], num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16, drop_path_rate=0.0, classifier_dropout_prob=0.0, **options,
    )  # fmt: skip
    return transformers.SegformerForSemanticSegmentation(config)


def upernet(auxiliary=True):
    backbone = transformers.ConvNextConfig(
        depths=[1] * 4,
        hidden_sizes=[8, 8, 16, 16],
        out_features=[f"stage{i}" for i in (1, 2, 3, 4)],
        drop_path_rate=0.0,
    )
    config = transformers.UperNetConfig(
        backbone_config=backbone, hidden_size=16, num_labels=K, use_auxiliary_head=auxiliary, auxiliary_in_channels=16,
        auxiliary_channels=8, auxiliary_loss_weight=0.3,
    )  # fmt: skip
    return transformers.UperNetForSemanticSegmentation(config)


def dpt():
    config = transformers.DPTConfig(
        **VIT, patch_size=16, is_hybrid=False, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=16, semantic_classifier_dropout=0.0,
    )  # fmt: skip
    return transformers.DPTForSemanticSegmentation(config)


def beit(name="Beit"):
    config = getattr(transformers, f"{name}Config")(
        **VIT, patch_size=16, out_indices=[1, 2, 3, 4], auxiliary_channels=8, use_relative_position_bias=True
    )
    return getattr(transformers, f"{name}ForSemanticSegmentation")(config)


def mobilevit():
    config = transformers.MobileViTConfig(
        image_size=SIZE, hidden_sizes=[16, 16, 16], neck_hidden_sizes=[8, 8, 8, 16, 16, 16, 32], num_labels=K,
        aspp_out_channels=16, num_attention_heads=2, hidden_dropout_prob=0.0, classifier_dropout_prob=0.0,
        aspp_dropout_prob=0.0, output_stride=16,
    )  # fmt: skip
    return transformers.MobileViTForSemanticSegmentation(config)


def mobilevitv2():
    config = transformers.MobileViTV2Config(
        image_size=SIZE, base_attn_unit_dims=[8, 8, 16], n_attn_blocks=[1, 1, 1], width_multiplier=0.25, num_labels=K,
        aspp_out_channels=16, attn_dropout=0.0, ffn_dropout=0.0, aspp_dropout_prob=0.0, classifier_dropout_prob=0.0,
    )  # fmt: skip
    return transformers.MobileViTV2ForSemanticSegmentation(config)


def mobilenetv2():
    config = transformers.MobileNetV2Config(
        image_size=SIZE, depth_multiplier=0.35, output_stride=16, classifier_dropout_prob=0.0, num_labels=K
    )
    return transformers.MobileNetV2ForSemanticSegmentation(config)


MODELS = {  # the model, the size of its logits, and that of its auxiliary logits
    "segformer": (segformer, 16, None), "upernet": (upernet, 16, 4), "upernet alone": (lambda: upernet(False), 16, None),
    "dpt": (dpt, 64, 32), "beit": (beit, 16, 4), "data2vec": (lambda: beit("Data2VecVision"), 16, 4),
    "mobilevit": (mobilevit, 4, None), "mobilevitv2": (mobilevitv2, 2, None), "mobilenetv2": (mobilenetv2, 4, None),
}  # fmt: skip


def network(name):
    """In training mode, with batch normalization by running statistics and without dropout: forward is a function."""
    torch.manual_seed(0)
    model = MODELS[name][0]().double().train()
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm | torch.nn.modules.dropout._DropoutNd):
            module.eval()
    return model


def batch(count=2):
    """Images [B, 3, 64, 64] and labels [B, 64, 64]; of image i the first 8 (i + 1) rows are ignored."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, K, (count, SIZE, SIZE), generator=generator)
    for i in range(count):
        labels[i, : 8 * (i + 1)] = 255
    return images, labels


@pytest.mark.parametrize("name", MODELS)
def test_value_and_gradient_of_the_models_loss(name):
    images, labels = batch()
    model = network(name)
    host = copy.deepcopy(model)
    loss = hf_loss(CrossEntropyLoss(), model)
    output = model(images)
    _, size, auxiliary = MODELS[name]
    assert output.logits.shape == (2, K, size, size)
    assert (output.auxiliary_logits.shape == (2, K, auxiliary, auxiliary)) if auxiliary else len(output.keys()) == 1
    ours, expected = loss(output, labels), host(images, labels=labels).loss
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)
    ours.backward()
    expected.backward()
    for (key, p), q in zip(model.named_parameters(), host.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), key
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-6, atol=1e-9, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", MODELS)
def test_eval_mode_and_state_dict_are_unchanged(name):
    images, labels = batch()
    model = network(name).eval()
    expected, keys = model(images, labels=labels), model.state_dict().keys()
    low_resolution(model)
    output = model(images, labels=labels)
    assert type(output) is type(expected) and output.keys() == expected.keys() and model.state_dict().keys() == keys
    for key in ("loss", "logits"):
        torch.testing.assert_close(output[key], expected[key], rtol=0, atol=0)


def test_the_weight_of_the_auxiliary_logits():
    assert hf_loss(FocalLoss(), upernet()).aux_weight == 0.3  # of its configuration
    assert hf_loss(FocalLoss(), upernet(), aux_weight=0.7).aux_weight == 0.7
    assert hf_loss(FocalLoss()).aux_weight == 0.4
    images, labels = batch()
    model, criterion = network("upernet"), FocalLoss()
    output = low_resolution(model)(images)
    expected = criterion(output.logits, labels) + 0.7 * criterion(output.auxiliary_logits, labels)
    torch.testing.assert_close(hf_loss(criterion, aux_weight=0.7)(output, labels), expected)
    torch.testing.assert_close(hf_loss(criterion)((output.logits,), labels), criterion(output.logits, labels))


def test_one_class():
    _, labels = batch()
    labels = torch.where(labels == 255, 255, labels % 2)
    logits = torch.randn(2, 1, 16, 16, dtype=torch.float64)
    z = torch.nn.functional.interpolate(logits, labels.shape[-2:], mode="bilinear")[:, 0]
    valid = labels != 255
    expected = torch.nn.functional.binary_cross_entropy_with_logits(z[valid], labels[valid].double())
    torch.testing.assert_close(hf_loss(SigmoidFocalLoss(0.0, -1.0))({"logits": logits}, labels), expected)


def trainer(tmp_path, model, criterion, images, labels, **arguments):
    """One step of gradient descent at rate 1 over all images."""
    data = [{"pixel_values": image, "labels": label} for image, label in zip(images, labels, strict=True)]
    settings = transformers.TrainingArguments(
        tmp_path, max_steps=1, learning_rate=1.0, optim="sgd", lr_scheduler_type="constant", max_grad_norm=0.0,
        report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True, remove_unused_columns=False,
        dataloader_pin_memory=False, **arguments,
    )  # fmt: skip
    return transformers.Trainer(
        model=model, args=settings, train_dataset=data, eval_dataset=data, compute_loss_func=hf_loss(criterion, model)
    )


def without_statistics(model):
    """Batch normalization depends on the batch: none, so that an accumulated step can equal a large one."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, torch.nn.modules.batchnorm._BatchNorm):
                setattr(module, name, torch.nn.Identity())
            elif isinstance(child, torch.nn.modules.dropout._DropoutNd):
                child.p = 0.0
    return model.double().train()


@pytest.mark.parametrize("make", [segformer, upernet], ids=["segformer", "upernet"])
@pytest.mark.parametrize("criterion", [CrossEntropyLoss(), FocalLoss()], ids=["cross-entropy", "focal"])
def test_an_accumulated_step_is_that_of_one_large_batch(tmp_path, make, criterion):
    """The two batches have unlike numbers of ignored pixels."""
    torch.manual_seed(0)
    images, labels = batch(4)
    start = without_statistics(make())
    expected = copy.deepcopy(start)
    hf_loss(criterion, expected)(low_resolution(expected)(images), labels).backward()
    for accumulation in (1, 2, 4):
        model = copy.deepcopy(start)
        made = trainer(
            tmp_path, model, criterion, images, labels, per_device_train_batch_size=4 // accumulation,
            gradient_accumulation_steps=accumulation,
        )  # fmt: skip
        count_valid_pixels(made)
        made.train()
        for (key, after), before, reference in zip(
            model.named_parameters(), start.parameters(), expected.parameters(), strict=True
        ):
            torch.testing.assert_close(
                before - after, reference.grad, rtol=1e-6, atol=1e-9, msg=lambda text, key=key: f"{key}: {text}"
            )


def test_without_the_count_a_step_is_the_average_of_its_batches(tmp_path):
    """Of batches with the same number of pixels, ignored ones included; not what divides by 255s."""
    torch.manual_seed(0)
    images, labels = batch(4)
    start, criterion = without_statistics(segformer()), CrossEntropyLoss()
    model = copy.deepcopy(start)
    made = trainer(
        tmp_path, model, criterion, images, labels, per_device_train_batch_size=1, gradient_accumulation_steps=4
    )
    made.train()
    expected = copy.deepcopy(start)
    for image, label in zip(images, labels, strict=True):
        (criterion(expected(image[None]).logits, label[None]) / 4).backward()
    for after, before, reference in zip(model.parameters(), start.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(before - after, reference.grad, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("counts", [False, True])
def test_evaluation(tmp_path, counts):
    """Trainer's eval_loss, and logits for compute_metrics without auxiliary ones."""
    torch.manual_seed(0)
    images, labels = batch(4)
    model = without_statistics(upernet())
    made = trainer(tmp_path, model, CrossEntropyLoss(), images, labels, per_device_eval_batch_size=4)
    if counts:
        count_valid_pixels(made)
    shapes = []
    made.compute_metrics = lambda p: shapes.append((p.predictions.shape, p.label_ids.shape)) or {}
    expected = model.eval()(images, labels=labels).logits
    expected = torch.nn.functional.cross_entropy(expected, labels, ignore_index=255)
    assert made.evaluate()["eval_loss"] == pytest.approx(expected.item())
    assert shapes == [((4, K, SIZE, SIZE), (4, SIZE, SIZE))]


def test_everything_ignored_is_zero(tmp_path):
    images, labels = batch(2)
    model = without_statistics(segformer())
    before = copy.deepcopy(model)
    made = trainer(tmp_path, model, FocalLoss(), images, torch.full_like(labels, 255), per_device_train_batch_size=2)
    loss = made.compute_loss_func
    count_valid_pixels(made)
    assert made.compute_loss_func.counts_valid and not loss.counts_valid  # which another Trainer may have
    assert made.train().training_loss == 0
    for p, q in zip(model.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=0)


def test_saving_and_loading(tmp_path):
    model = network("upernet")
    low_resolution(model).save_pretrained(tmp_path)
    assert re.search('"UperNetForSemanticSegmentation"', (tmp_path / "config.json").read_text())
    loaded = transformers.UperNetForSemanticSegmentation.from_pretrained(tmp_path).double().eval()
    torch.testing.assert_close(loaded(batch()[0]).logits, model.eval()(batch()[0]).logits)


def test_bad_arguments(tmp_path):
    images, labels = batch()
    with pytest.raises(TypeError, match=r"model is a Conv2d; it takes a \.\.\.ForSemanticSegmentation"):
        hf_loss(FocalLoss(), torch.nn.Conv2d(3, K, 1))
    with pytest.raises(TypeError, match="criterion is a CrossEntropyLoss, which can't take low-resolution logits"):
        hf_loss(torch.nn.CrossEntropyLoss())
    with pytest.raises(ValueError, match="labels is None"):
        hf_loss(FocalLoss())({"logits": torch.zeros(2, K, 4, 4)}, None)
    model = low_resolution(network("upernet"), DiceLoss())
    with pytest.raises(ValueError, match="labels are given to a UperNetForSemanticSegmentation after low_resolution"):
        model(images, labels=labels)
    with pytest.raises(TypeError, match="the model returns a tuple.*return_dict=True"):
        model(images, return_dict=False)
    made = transformers.Trainer(
        model=model, args=transformers.TrainingArguments(tmp_path, use_cpu=True, report_to=[]), train_dataset=[]
    )
    with pytest.raises(TypeError, match="trainer.compute_loss_func is None; it takes a Trainer with"):
        count_valid_pixels(made)


def test_predict_labels_is_the_post_processing_of_the_host():
    """`predict_labels(outputs.logits, size)` equals post_process_semantic_segmentation, size by size."""
    processor = transformers.SegformerImageProcessor()
    logits = torch.randn(2, 7, 9, 13)
    outputs = transformers.modeling_outputs.SemanticSegmenterOutput(logits=logits)
    sizes = [(36, 52), (41, 30)]
    expected = processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)
    for one, size, theirs in zip(logits, sizes, expected, strict=True):
        assert torch.equal(predict_labels(one[None], size)[0].long(), theirs)
