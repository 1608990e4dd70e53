"""What people write, or take from a library, in the place of our losses: logits upsampled, then a loss on them; the
matrix of all pairs of features, masks, and a loss on that; normalized copies of features and centers, and a product."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def why_missing(package: str) -> str | None:
    return None if importlib.util.find_spec(package) else f"the package {package} is not installed"


@functools.cache
def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """torch.compile of a function, one graph per shape."""
    torch._dynamo.config.cache_size_limit = 256
    return torch.compile(function, dynamic=False, fullgraph=True)


def resize(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """Maps [B, K, h, w] or [B, K, d, h, w] at another size."""
    return F.interpolate(x, size=size, mode="trilinear" if x.ndim == 5 else "bilinear", align_corners=False)


def upsample(x: Tensor, target: Tensor) -> Tensor:
    size = target.shape[2 - x.ndim :]
    return x if x.shape[2:] == size else resize(x, size)


def cross_entropy(x: Tensor, target: Tensor, ignore: int, weight: Tensor | None) -> Tensor:
    z = upsample(x, target).float()  # as autocast does in front of a loss
    return F.cross_entropy(z, target, weight=weight, ignore_index=ignore)


def focal(x: Tensor, target: Tensor, ignore: int, gamma: float) -> Tensor:
    z = upsample(x, target).float()
    nll = F.cross_entropy(z, target, ignore_index=ignore, reduction="none")
    p = torch.exp(-nll)
    return ((1 - p) ** gamma * nll).sum() / (target != ignore).sum()


def torchvision_focal(x: Tensor, target: Tensor, ignore: int, gamma: float, alpha: float) -> Tensor:
    from torchvision.ops import sigmoid_focal_loss

    z = upsample(x, target).float()
    valid = target != ignore
    dense = F.one_hot(target.where(valid, 0), z.shape[1]).permute(0, 3, 1, 2).to(z.dtype)
    loss = sigmoid_focal_loss(z, dense, alpha=alpha, gamma=gamma)
    return (loss * valid[:, None]).sum() / (valid.sum() * z.shape[1])


@functools.cache
def _smp_module(**arguments: Any) -> Any:
    import segmentation_models_pytorch as smp

    return smp.losses.FocalLoss("multiclass", **arguments)


def smp_focal(x: Tensor, target: Tensor, ignore: int, gamma: float, alpha: float) -> Tensor:
    """Its multi-class mode is one-vs-rest: the mean over classes of binary focal losses."""
    return _smp_module(alpha=alpha, gamma=gamma, ignore_index=ignore)(upsample(x, target).float(), target)


def ohem(x: Tensor, target: Tensor, ignore: int, thresh: float, min_kept: int) -> Tensor:
    """As in HRNet and mmsegmentation: probabilities of the labels, a full sort, a mask, a weighted loss."""
    z = upsample(x, target).float()
    valid = target != ignore
    with torch.no_grad():
        p = z.softmax(1).gather(1, target.where(valid, 0)[:, None])[:, 0]
        ranked = p[valid].sort().values
        hardest = ranked[min(min_kept, ranked.numel() - 1)] if ranked.numel() else p.new_zeros(())
        keep = valid & (p < hardest.clamp(min=thresh))
    loss = F.cross_entropy(z, target, ignore_index=ignore, reduction="none")
    return (loss * keep).sum() / keep.sum()


def contrastive_seg(
    x: Tensor,
    labels: Tensor,
    bank: Tensor | None,
    bank_labels: Tensor | None,
    temperature: float,
    base_temperature: float,
    weights: Tensor | None = None,
) -> Tensor:
    """ContrastiveSeg's loss of unit-norm anchors among themselves, or against a bank; weights of anchors among
    themselves, as anchors and in the sums."""
    others, other_labels = (x, labels) if bank is None else (bank, bank_labels)
    logits = (x @ others.T).float() if x.dtype == torch.bfloat16 else x @ others.T
    logits = logits / temperature
    logits = logits - logits.max(1, keepdim=True).values.detach()
    mask = (labels[:, None] == other_labels).to(logits.dtype)
    negatives = 1 - mask
    if bank is None:
        mask = mask * (1 - torch.eye(len(labels), dtype=mask.dtype, device=mask.device))
    if weights is not None:
        mask, negatives = mask * weights, negatives * weights
    exponentials = torch.exp(logits)
    log_ratio = logits - torch.log(exponentials + (exponentials * negatives).sum(1, keepdim=True))
    per_anchor = (mask * log_ratio).sum(1) / mask.sum(1)
    if weights is not None:
        per_anchor = per_anchor * weights / weights.mean()
    return -(temperature / base_temperature) * per_anchor.mean()


def segsort_nca(
    x: Tensor, labels: Tensor, segment_ids: Tensor, prototypes: Tensor, prototype_labels: Tensor, concentration: float
) -> Tensor:
    """SegSort's loss of unit-norm pixels, the own segment left out: each label has another."""
    exponentials = torch.exp(concentration * (x @ prototypes.T).float())
    same = labels[:, None] == prototype_labels
    own = segment_ids[:, None] == torch.arange(len(prototypes), device=x.device)
    positive, negative = (exponentials * (same & ~own)).sum(1), (exponentials * ~same).sum(1)
    return -torch.log(positive / (positive + negative)).mean()


def cdist_margin(x: Tensor, labels: Tensor, margin: float) -> Tensor:
    """Euclidean contrastive loss, each mean over all its pairs."""
    distance = torch.cdist(x, x)
    same = labels[:, None] == labels
    positive = same & ~torch.eye(len(labels), dtype=torch.bool, device=x.device)
    pull = (distance.square() * positive).sum() / positive.sum()
    return pull + ((margin - distance).relu().square() * ~same).sum() / (~same).sum()


@functools.cache
def _pml_module(name: str, distance: str, **arguments: Any) -> Any:
    from pytorch_metric_learning import distances, losses

    return getattr(losses, name)(distance=getattr(distances, distance)(normalize_embeddings=False), **arguments)


def pml_supcon(x: Tensor, labels: Tensor, temperature: float) -> Tensor:
    return _pml_module("SupConLoss", "DotProductSimilarity", temperature=temperature)(x, labels)


def pml_contrastive(x: Tensor, labels: Tensor, margin: float) -> Tensor:
    return _pml_module("ContrastiveLoss", "LpDistance", pos_margin=0, neg_margin=margin)(x, labels)


def contrastive_seg_anchors(
    labels: Tensor, predictions: Tensor, ignore: int, max_samples: int, max_views: int
) -> tuple[Tensor, Tensor]:
    """ContrastiveSeg's choice, a loop over images and classes: (pixels of the batch, their classes)."""
    labels, predictions = labels.flatten(1), predictions.flatten(1)
    classes = []
    for image in labels:
        present = [c for c in torch.unique(image).tolist() if c != ignore]
        classes.append([c for c in present if (image == c).nonzero().shape[0] > max_views])
    slots = sum(map(len, classes))
    if slots == 0:
        return labels.new_empty(0), labels.new_empty(0)
    views = min(max_samples // slots, max_views)
    chosen, chosen_classes = [], []
    for i, present in enumerate(classes):
        for c in present:
            hard = ((labels[i] == c) & (predictions[i] != c)).nonzero()[:, 0]
            easy = ((labels[i] == c) & (predictions[i] == c)).nonzero()[:, 0]
            from_hard = min(len(hard), max(views // 2, views - len(easy)))
            hard = hard[torch.randperm(len(hard), device=hard.device)[:from_hard]]
            easy = easy[torch.randperm(len(easy), device=easy.device)[: views - from_hard]]
            chosen.append(torch.cat((hard, easy)) + i * labels.shape[1])
            chosen_classes.append(torch.full_like(chosen[-1], c))
    return torch.cat(chosen), torch.cat(chosen_classes)


def permuted_rows(features: Tensor, index: Tensor) -> Tensor:
    """A channels-last copy of the map, its rows, then their norms."""
    rows = features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])[index]
    return F.normalize(rows.float(), dim=1).to(features.dtype)


def indexed_rows(features: Tensor, index: Tensor) -> Tensor:
    """The map indexed as it lies, without a copy of it."""
    _, _, height, width = features.shape
    rows = features[index // (height * width), :, index // width % height, index % width]
    return F.normalize(rows.float(), dim=1).to(features.dtype)


def cosine_logits(x: Tensor, centers: Tensor, scale: float) -> Tensor:
    """Both sides normalized, one product: [B, K, h, w] of centers [K, C], or of [B, K, C], each image's own."""
    product = "bchw,kc->bkhw" if centers.ndim == 2 else "bchw,bkc->bkhw"
    return scale * torch.einsum(product, F.normalize(x, dim=1), F.normalize(centers, dim=-1))


def cosine_convolution(x: Tensor, centers: Tensor, scale: float) -> Tensor:
    """The same as a 1 x 1 convolution, of the centers of all images."""
    return scale * F.conv2d(F.normalize(x, dim=1), F.normalize(centers, dim=1)[..., None, None])


def soft_class_centers(x: Tensor, logits: Tensor) -> Tensor:
    """ACFNet's class centers: the softmax over classes, and a product of matrices for each image."""
    membership = logits.softmax(1).flatten(2)
    sums = torch.bmm(membership, x.flatten(2).transpose(1, 2))
    return sums / (membership.sum(2, keepdim=True) + 1e-6)


def hard_class_centers(x: Tensor, labels: Tensor, classes: int, ignore: int) -> Tensor:
    """The same of labels, as a map of ones."""
    membership = F.one_hot(labels.where(labels != ignore, classes), classes + 1)[..., :classes].to(x.dtype)
    sums = torch.einsum("bhwk,bchw->bkc", membership, x)
    return sums / (membership.sum((1, 2))[..., None] + 1e-6)


def cosine_cross_entropy(x: Tensor, centers: Tensor, target: Tensor, scale: float, ignore: int) -> Tensor:
    """The cross-entropy at label resolution of `cosine_logits`."""
    return cross_entropy(cosine_logits(x, centers, scale), target, ignore, None)


def linear_cross_entropy(x: Tensor, centers: Tensor, labels: Tensor, scale: float, ignore: int) -> Tensor:
    """torch's loss of a linear layer, of rows: the map is normalized and permuted in front of it."""
    rows = F.normalize(x, dim=1).permute(0, 2, 3, 1).flatten(0, 2)
    return F.linear_cross_entropy(rows, scale * F.normalize(centers, dim=1), labels.flatten(), ignore_index=ignore)


def mean_softmax(maps: list[Tensor], flipped: list[bool], size: tuple[int, ...]) -> Tensor:
    """[B, K, (D,) H, W]: the mean of the probabilities of maps of several scales, some of them mirrored."""
    total: Tensor | None = None
    for x, mirrored in zip(maps, flipped, strict=True):
        logits = resize(x, size)
        probabilities = (logits.flip(-1) if mirrored else logits).softmax(1)
        total = probabilities if total is None else total + probabilities
    assert total is not None
    return total / len(maps)


def faiss_index(bank: Tensor) -> Any:
    """FAISS's exact index of rows by inner product."""
    import faiss

    index = faiss.IndexFlatIP(bank.shape[1])
    index.add(bank.numpy())
    return index


def faiss_search(index: Any, queries: Tensor, k: int) -> Tensor:
    """The k largest inner products of each query."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    return torch.from_numpy(index.search(queries.numpy(), k)[0])


def grid_points(x: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(points [B, h w, D + 2], clusters [h w]) that SegSort starts from: a permuted copy with locations, and blocks."""
    (height, width), (rows, columns) = x.shape[2:], grid
    y, x_ = (torch.linspace(0, 1, n, dtype=x.dtype, device=x.device) for n in (height, width))
    at = torch.stack(torch.meshgrid(y, x_, indexing="ij"), 2).expand(x.shape[0], -1, -1, -1)
    points = F.normalize(torch.cat([F.normalize(x, dim=1).permute(0, 2, 3, 1), at], 3), dim=3)
    i, j = (torch.arange(n, device=x.device) // -(-n // b) for n, b in ((height, rows), (width, columns)))
    return points.flatten(1, 2), (i[:, None] * columns + j).flatten()


def _prototypes(points: Tensor, clusters: Tensor, count: int) -> Tensor:
    sums = points.new_zeros(count, points.shape[1]).scatter_add_(0, clusters[:, None].expand_as(points), points)
    return F.normalize(sums, dim=1)


def segsort_kmeans(x: Tensor, grid: tuple[int, int], iterations: int) -> Tensor:
    """The published clustering: image by image; sums by scatter_add_, the largest product by mm and argmax."""
    points, first = grid_points(x, grid)
    found = []
    for image in points:
        clusters = first
        for _ in range(iterations):
            clusters = torch.mm(image, _prototypes(image, clusters, grid[0] * grid[1]).t()).argmax(1)
        found.append(clusters)
    return torch.stack(found).view(x.shape[0], *x.shape[2:])


def batched_kmeans(x: Tensor, grid: tuple[int, int], iterations: int) -> Tensor:
    """The same for all images together: sums by a product with a matrix of ones."""
    points, first = grid_points(x, grid)
    clusters, numbers = first.expand(points.shape[:2]), torch.arange(grid[0] * grid[1], device=x.device)
    for _ in range(iterations):
        member = (clusters[:, None] == numbers[:, None]).to(x.dtype)
        clusters = torch.bmm(points, F.normalize(torch.bmm(member, points), dim=2).mT).argmax(2)
    return clusters.view(x.shape[0], *x.shape[2:])


def faiss_kmeans(points: Tensor, first: Tensor, count: int, iterations: int) -> Tensor:
    """FAISS's spherical k-means on the points [B, N, J] of `grid_points`, image by image: clusters [B, N]."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    found = []
    for image in points:
        rows = image.numpy()
        about = {"spherical": True, "min_points_per_centroid": 1, "max_points_per_centroid": len(rows)}
        kmeans = faiss.Kmeans(rows.shape[1], count, niter=iterations - 1, **about)
        kmeans.train(rows, init_centroids=_prototypes(image, first, count).numpy())
        found.append(torch.from_numpy(kmeans.index.search(rows, 1)[1][:, 0]))
    return torch.stack(found)


def sklearn_kmeans(points: Tensor, first: Tensor, count: int, iterations: int) -> None:
    """scikit-learn's k-means on the same points: Euclidean, so its clusters are others."""
    from sklearn.cluster import KMeans

    for image in points:
        start = _prototypes(image, first, count).numpy()
        KMeans(count, init=start, n_init=1, max_iter=iterations, tol=0.0, algorithm="lloyd").fit(image.numpy())


def unique_segments(clusters: Tensor, labels: Tensor, classes: int, ignore: int) -> Tensor:
    """Segments by torch.unique of (image, cluster, label): ids, -1 where ignored."""
    image = torch.arange(clusters.shape[0], device=clusters.device)[:, None, None]
    key = (image * (clusters.max() + 1) + clusters) * classes + labels
    known = labels != ignore
    ids = torch.full_like(clusters, -1)
    ids[known] = torch.unique(key[known], return_inverse=True)[1]
    return ids


def scattered_means(x: Tensor, ids: Tensor, count: int) -> Tensor:
    """SegSort's prototypes: a permuted copy of the map without the ignored pixels, scatter_add_, the norm."""
    known = ids.flatten() >= 0
    rows = x.permute(0, 2, 3, 1).flatten(0, 2)[known]
    return _prototypes(rows, ids.flatten()[known], count)


def refined(x: Tensor, offsets: Tensor, logits: Tensor | None = None, align_corners: bool = False,
            padding: str = "border") -> Tensor:  # fmt: skip
    """Refined upsampling by F.interpolate, F.unfold and F.grid_sample, each with its map in memory."""
    height, width = offsets.shape[2:]
    up = F.interpolate(x, (height, width), mode="bilinear", align_corners=align_corners)
    if logits is not None:
        near = F.unfold(F.pad(offsets, (1, 1, 1, 1), mode="replicate"), 3).unflatten(1, (2, 9))
        offsets = (near.unflatten(3, (height, width)) * logits.softmax(1)[:, None]).sum(2)
    rows = torch.arange(height, dtype=torch.float32, device=x.device)[:, None] + offsets[:, 0]
    columns = torch.arange(width, dtype=torch.float32, device=x.device) + offsets[:, 1]
    grid = torch.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], 3)
    return F.grid_sample(up, grid.to(x.dtype), mode="bilinear", padding_mode=padding, align_corners=False)
