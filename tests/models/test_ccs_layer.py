"""CCSLayer against its formulas in fp64, what flows where, and what it says of wrong arguments."""

import pytest
import torch
import torch.nn.functional as F

from metricseg.layers import CCSLayer
from metricseg_kernels.core import backends

B, C, K, SIZE = 2, 6, 4, (5, 7)
FORMS = {"grouped": {}, "mlp": {"adapter": "mlp"}, "static": {"centers": "static"}}
LOSSES = ("guidance", "dice", "push", "pull")


@pytest.fixture(params=["reference", "cpu"])
def backend(request):
    reason = backends.why_not("centers", request.param, "cpu")
    return request.param if reason is None else pytest.skip(reason)


def make(form="grouped", dtype=torch.float64, **options):
    """A layer whose every parameter is random."""
    torch.manual_seed(1)
    layer = CCSLayer(C, K, **{**FORMS[form], "push": 0.9, "margin": 0.1, **options}).to(dtype)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return layer


def batch(dtype=torch.float64):
    """Features, and labels of another size: a stripe ignored, class 3 in no label, class 2 in the first image only."""
    torch.manual_seed(2)
    labels = torch.randint(0, 3, (B, 19, 30), dtype=torch.uint8)
    labels[1] = labels[1].clamp(max=1)
    labels[:, :4] = 255
    return torch.randn(B, C, *SIZE, dtype=dtype).requires_grad_(), labels


def literal(layer, form, features, labels):
    """Image by image and pixel by pixel: (logits, centers of each image, weighted losses)."""
    small = F.interpolate(labels[:, None].double(), SIZE)[:, 0].long().flatten(1)  # [B, N]
    weight = dict(layer.named_parameters())
    logits, centers, push, pull = [], [], [], []
    guidance = None
    if form != "static":
        guidance = torch.einsum("kc,bchw->bkhw", weight["guidance.weight"][..., 0, 0], features)
        guidance = guidance + weight["guidance.bias"][:, None, None]
    for b in range(B):
        x = features[b].flatten(1).T  # [N, C]
        if form == "static":
            w = weight["centers"]
        else:
            member = guidance[b].flatten(1).softmax(0)  # [K, N]
            means = member @ x / (member.sum(1, keepdim=True) + 1e-6)
            if form == "grouped":
                adapt = weight["adapter.weight"][..., 0].view(K, C, C)
                w = torch.stack([adapt[k] @ means[k] + weight["adapter.bias"].view(K, C)[k] for k in range(K)])
            else:
                both = torch.cat([means, weight["centers"]], 1)
                hidden = (both @ weight["adapter.0.weight"].T + weight["adapter.0.bias"]).relu()
                w = hidden @ weight["adapter.2.weight"].T + weight["adapter.2.bias"]
        cosine = F.cosine_similarity(x[:, None], w[None], dim=2)  # [N, K]
        near = F.cosine_similarity(w[:, None], w[None], dim=2)
        seen = sorted({k for k in small[b].tolist() if k != 255})
        others = [sum((near[k, j] - layer.margin).clamp(min=0) for j in range(K) if j != k) for k in seen]
        push.append(sum(others) / (K - 1) / max(len(seen), 1))
        fixed = F.cosine_similarity(x[:, None], w[None].detach(), dim=2)
        pull.append(sum((1 - fixed[small[b] == k, k]).mean() for k in seen) / max(len(seen), 1))
        logits.append((layer.scale * cosine).T.reshape(K, *SIZE))
        centers.append(w)
    losses = {"push": 0.9 * sum(push) / B, "pull": 0.3 * sum(pull) / B}
    if guidance is not None:
        full = F.interpolate(guidance, labels.shape[-2:], mode="bilinear")
        losses["guidance"] = 0.4 * F.cross_entropy(full, labels.long(), ignore_index=255)
        q, t = full.softmax(1).movedim(1, -1).flatten(0, 2), labels.long().flatten()
        q, t = q[t != 255], t[t != 255]
        dice = [2 * q[t == k, k].sum() / (q[:, k].sum() + (t == k).sum()) for k in t.unique().tolist()]
        losses["dice"] = 0.2 * (1 - sum(dice) / len(dice))
    return torch.stack(logits), torch.stack(centers), losses


@pytest.mark.parametrize("form", FORMS)
def test_logits_losses_and_gradients_are_those_of_the_formulas(form, backend):
    layer, (features, labels) = make(form, backend=backend), batch()
    logits, losses = layer(features, labels)
    expected, centers, formula = literal(layer, form, features, labels)
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(layer(features), logits, rtol=0, atol=0)
    found = layer.compute(features, ("centers",))["centers"]
    torch.testing.assert_close(found, centers if form != "static" else centers[0], rtol=1e-10, atol=1e-12)
    assert list(losses) == [name for name in LOSSES if name in formula]
    sources = [features, *layer.parameters()]
    mixed = torch.randn_like(logits)
    for name, value in {"logits": (mixed * logits).sum(), **losses}.items():
        truth = (mixed * expected).sum() if name == "logits" else formula[name]
        torch.testing.assert_close(value, truth, rtol=1e-10, atol=0)
        ours, theirs = (torch.autograd.grad(v, sources, retain_graph=True, allow_unused=True) for v in (value, truth))
        for source, a, b in zip(sources, ours, theirs, strict=True):
            if b is None or not b.any():
                assert a is None or not a.any(), name
            else:
                torch.testing.assert_close(
                    a, b, rtol=1e-7, atol=1e-9 * float(b.abs().max()), msg=f"{name} {source.shape}"
                )


@pytest.mark.parametrize("form", FORMS)
def test_every_part_learns(form):
    layer, (features, labels) = make(form, torch.float32), batch(torch.float32)
    logits, losses = layer(features, labels)
    (logits.square().mean() + sum(losses.values())).backward()
    for name, tensor in (("features", features), *layer.named_parameters()):
        assert tensor.grad.isfinite().all() and tensor.grad.any(), name


def test_adapted_centers_start_as_the_means_plus_a_little():
    torch.manual_seed(0)
    layer, features = CCSLayer(64, 3), torch.randn(2, 64, 8, 8).relu()
    start = layer.compute(features, ("centers",))["centers"]
    member = layer.guidance(features).softmax(1).flatten(2)
    means = member @ features.flatten(2).mT / member.sum(2, keepdim=True)
    assert F.cosine_similarity(means, start, dim=2).min() > 0.97 and not torch.equal(means, start)
    torch.testing.assert_close(start, means + layer.adapter.bias.view(3, 64))
    assert sum(p.numel() for p in layer.adapter.parameters()) == 3 * 64 * 64 + 3 * 64


@pytest.mark.parametrize("form", FORMS)
def test_nothing_labelled(form, backend):
    layer, (features, labels) = make(form, torch.float32, backend=backend), batch(torch.float32)
    _, losses = layer(features, torch.full_like(labels, 255))
    assert not any(value.any() for value in losses.values())
    (gradient,) = torch.autograd.grad(sum(losses.values()), features)
    assert not gradient.any()


def test_weights_choose_the_losses(monkeypatch):
    features, labels = batch(torch.float32)
    full = make(dtype=torch.float32)(features, labels)[1]
    for name in LOSSES:
        layer = make(dtype=torch.float32, **{other: 0.0 for other in LOSSES if other != name})
        (alone,) = layer(features, labels)[1].items()
        assert alone[0] == name and torch.equal(alone[1], full[name])
    none = make(dtype=torch.float32, guidance=0, dice=0, push=0, pull=0)
    monkeypatch.setattr("metricseg_kernels.center_push", lambda *_: pytest.fail("a loss that nobody asked for"))
    assert none(features, labels)[1] == {}


def test_only_what_is_asked_for_is_computed(monkeypatch):
    layer, (features, labels) = make(dtype=torch.float32), batch(torch.float32)
    with monkeypatch.context() as patch:
        patch.setattr(layer, "centers_of", lambda *_: pytest.fail("centers that nobody asked for"))
        assert list(layer.compute(features, ("guidance",))) == ["guidance"]
    calls = []
    similarity = layer.compute.__globals__["kernels"].center_similarity
    monkeypatch.setattr(
        "metricseg_kernels.center_similarity", lambda *a, **k: calls.append(k.get("pull_labels")) or similarity(*a, **k)
    )
    assert list(layer.compute(features, ("centers", "push"), labels)) == ["centers", "push"] and not calls
    layer.compute(features, ("logits", "pull", "push"), labels)
    assert len(calls) == 1 and calls[0].shape == (B, *SIZE)
    layer.compute(features, ("logits",), labels)
    assert len(calls) == 2 and calls[1] is None


@pytest.mark.parametrize("form", ["grouped", "static"])
def test_compiles_without_a_break(form):
    layer, (features, labels) = make(form, torch.float32), batch(torch.float32)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    logits, losses = layer(features, labels)
    again, losses_again = compiled(features, labels)
    torch.testing.assert_close(again, logits)
    torch.testing.assert_close(losses_again, losses)
    (ours, theirs) = (torch.autograd.grad(sum(v.values()), features)[0] for v in (losses_again, losses))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("form", FORMS)
def test_autocast_keeps_parameters_in_fp32(form, backend):
    layer, (features, labels) = make(form, torch.float32, backend=backend), batch(torch.float32)
    half = features.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        logits, losses = layer(half, labels)
    exact, exact_losses = layer(half.detach().float(), labels)
    assert logits.dtype == torch.bfloat16 and {v.dtype for v in losses.values()} == {torch.float32}
    assert (logits.float() - exact).norm() < 0.02 * exact.norm()
    for name, value in losses.items():
        assert (value - exact_losses[name]).abs() < 0.02 * layer.weights[name], name
    (logits.float().square().mean() + sum(losses.values())).backward()
    assert half.grad.dtype == torch.bfloat16 and {p.grad.dtype for p in layer.parameters()} == {torch.float32}


def test_trains_and_is_kept():
    """Two regions of an image, told apart in a few steps; a saved layer gives the same logits."""
    torch.manual_seed(0)
    layer, (features, _) = CCSLayer(C, 2), batch(torch.float32)
    labels = (torch.arange(SIZE[1]) > 3).long().expand(B, *SIZE)
    features = 0.5 * features.detach() + torch.randn(2, C)[labels].movedim(3, 1)
    optimizer = torch.optim.Adam(layer.parameters(), 0.02)
    for _ in range(30):
        logits, losses = layer(features, labels)
        loss = F.cross_entropy(logits, labels) + sum(losses.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (layer(features).argmax(1) == labels).float().mean() > 0.95
    other = CCSLayer(C, 2)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(features), layer(features))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"channels": 0}, "channels is 0"),
        ({"num_classes": 2.0}, "num_classes is 2.0"),
        ({"centers": "fixed"}, "centers is 'fixed'; it takes 'adaptive' or 'static'"),
        ({"adapter": "conv"}, "adapter is 'conv'; it takes 'grouped' or 'mlp'"),
        ({"scale": 0.0}, "scale, margin are 0.0, 0.0"),
        ({"scale": float("nan")}, "scale, margin are nan"),
        ({"margin": float("inf")}, "scale, margin are 15.0, inf"),
        ({"push": -1.0}, "push is -1.0"),
        ({"dice": float("nan")}, "dice is nan"),
    ],
)
def test_layer_that_can_not_be_built(options, words):
    with pytest.raises(ValueError, match=words):
        CCSLayer(**{"channels": C, "num_classes": K, **options})


@pytest.mark.parametrize(
    ("form", "names", "features", "labels", "error", "words"),
    [
        ("grouped", ("logits",), torch.zeros(B, C + 1, 2, 2), None, ValueError, r"features .*\[B, 6, h, w\], got \(2, 7, 2, 2\)"),
        ("static", ("logits",), "picture", None, ValueError, "features .*got str"),
        ("grouped", ("edges",), torch.zeros(B, C, 2, 2), None, ValueError, "edges asked for; this layer offers logits, guidance, centers"),
        ("static", ("guidance",), torch.zeros(B, C, 2, 2), None, ValueError, "guidance asked for; this layer offers logits, centers, push"),
        ("static", ("push",), torch.zeros(B, C, 2, 2), None, ValueError, "made with labels, got None"),
        ("static", ("push",), torch.zeros(B, C, 2, 2), torch.zeros(B, 2, 2), TypeError, "labels must have dtype uint8"),
        ("static", ("pull",), torch.zeros(B, C, 2, 2), torch.zeros(B, 2).long(), ValueError, r"labels must be \[B, H, W\]"),
        ("static", ("pull",), torch.zeros(B, C, 2, 2), torch.zeros(1, 2, 2).long(), ValueError, "labels has a batch of 1"),
        ("static", ("push",), torch.zeros(B, C, 2, 2), torch.full((B, 2, 2), K), ValueError, "labels holds .* ignore_index .* example 4"),
    ],
)  # fmt: skip
def test_call_with_wrong_arguments(form, names, features, labels, error, words):
    with pytest.raises(error, match=words):
        make(form, torch.float32).compute(features, names, labels)
