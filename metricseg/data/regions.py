"""Oversegmentations in the place of labels, for training without labels: computed once and cached, or your own files.

data = Oversegmented(CamVid("data/camvid"), Regions("felzenszwalb", cache="runs/regions"))
image, regions = data[0]  # uint8 [3, H, W], int32 [H, W]
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from tqdm import tqdm

from metricseg.data.base import BadSample, Sample, need
from metricseg.utils.files import write_whole

NO_REGION = -1
MOST_REGIONS = 1 << 16  # of a picture: what a 16-bit PNG and `SegSortLoss` take
DEFAULTS: dict[str, dict[str, Any]] = {
    "felzenszwalb": {"scale": 200.0, "sigma": 0.8, "min_size": 100},
    "slic": {"n_segments": 150, "compactness": 10.0, "sigma": 0.0},
}
READS = "region files are DIR/NAME.png, gray of 8 or 16 bits, or DIR/NAME.npy, NAME that of the picture"


def segmenter(method: str) -> Callable[..., np.ndarray]:
    """scikit-image's function; ImportError if it is not installed."""
    try:
        from skimage import segmentation
    except ImportError as error:
        raise ImportError(
            f'regions by {method} need scikit-image: pip install "metricseg[unsupervised]". Files of your own need '
            "none: --data.regions.folder DIR"
        ) from error
    found: Callable[..., np.ndarray] = getattr(segmentation, method)
    return found


class Regions:
    """Where the regions of a picture come from: a method of scikit-image with a cache on disk, or your own files.

    A cached map is `<cache>/<method and options>/<name>-<key>.png`, gray of 16 bits, written whole. Its key is a
    checksum of the picture's path, time and size, or, if the data set has no files, of its pixels.

    Args:
        method: "felzenszwalb" or "slic"; None with `folder`.
        folder: of your own maps, `NAME.png` (gray of 8 or 16 bits) or `NAME.npy` ([H, W], any integer dtype), NAME as
            that of the picture. Pixels of one value are a region; negative ones belong to none.
        cache: folder of computed maps.
        options: of the method: scale, sigma, min_size (felzenszwalb); n_segments, compactness, sigma (slic).

    Raises ValueError for another method or option, for both a method and a folder, or neither; FileNotFoundError if
    `folder` is missing.
    """

    def __init__(
        self,
        method: str | None = None,
        folder: str | Path | None = None,
        cache: str | Path = "runs/regions",
        **options: Any,
    ) -> None:
        if (method is None) == (folder is None):
            raise ValueError(
                f"regions have method {method!r} and folder {folder!r}; they take one of them: a method "
                f"({', '.join(DEFAULTS)}), or the folder of your own maps"
            )
        if method is not None and method not in DEFAULTS:
            raise ValueError(f"method of regions is {method!r}; it takes one of {', '.join(DEFAULTS)}")
        known = DEFAULTS[method] if method else {}
        for name, value in options.items():
            if name not in known:
                takes = f"takes {', '.join(known)}" if known else "of your own files takes none"
                raise ValueError(f"{name} is no option of regions; {method or 'a folder'} {takes}")
            kind, least = type(known[name]), int(isinstance(known[name], int))
            if isinstance(value, bool) or not isinstance(value, int | kind) or not least <= value < float("inf"):
                raise ValueError(f"{name} of regions is {value!r}; it takes {kind.__name__} >= {least}")
        self.method, self.folder = method, None if folder is None else need(Path(folder), READS)
        self.options = {name: type(value)(options.get(name, value)) for name, value in known.items()}
        words = "-".join(f"{name}{value:g}" for name, value in self.options.items())
        self.cache = Path(cache) / f"{method}-{words}"

    def file(self, picture: Path | None, image: Tensor | None) -> Path:
        """The region map of a picture: the user's own, or its place in the cache."""
        if self.folder is None:
            if picture is not None:
                stat = picture.stat()
                content = f"{picture.resolve()} {stat.st_mtime_ns} {stat.st_size}".encode()
            else:
                assert image is not None
                content = repr(tuple(image.shape)).encode() + image.contiguous().numpy().tobytes()
            return (
                self.cache / f"{picture.stem if picture else 'picture'}-{hashlib.sha256(content).hexdigest()[:20]}.png"
            )
        if picture is None:
            raise ValueError("regions from a folder are found by the picture's name; this data set keeps no `images`")
        found = [self.folder / f"{picture.stem}{ending}" for ending in (".png", ".npy")]
        return next((path for path in found if path.exists()), None) or need(found[0], READS)

    def compute(self, image: Tensor) -> np.ndarray:
        """Regions [H, W] of an image uint8 [3, H, W], numbered from 0."""
        assert self.method is not None
        more = {"start_label": 0} if self.method == "slic" else {}
        pixels = image.permute(1, 2, 0).contiguous().numpy()
        regions = segmenter(self.method)(pixels, **self.options, **more)
        return np.unique(regions, return_inverse=True)[1].reshape(regions.shape)

    def read(self, path: Path, picture: str, size: tuple[int, int]) -> Tensor:
        """int32 [H, W] of a region file; BadSample if it can't be read or has another size than its picture."""
        try:
            if path.suffix == ".npy":
                regions = np.load(path, allow_pickle=False)
            else:
                with Image.open(path) as file:
                    if file.mode not in ("L", "P", "I", "I;16"):
                        raise ValueError(f"it has {file.mode} pixels")
                    regions = np.asarray(file)
            if regions.ndim != 2 or regions.dtype.kind not in "iu":
                raise ValueError(f"it holds {regions.dtype} {list(regions.shape)}, not integers [H, W]")
        except Exception as error:
            raise BadSample(f"the regions {path} can't be read: {error}; {READS}") from error
        if regions.shape != size:
            raise BadSample(
                f"the regions {path} are {regions.shape[1]} x {regions.shape[0]} but their picture {picture} is "
                f"{size[1]} x {size[0]}"
            )
        values = np.maximum(regions.astype(np.int64), NO_REGION)
        if values.max(initial=0) >= MOST_REGIONS:  # numbers of one's own may have gaps
            numbers = np.unique(values)
            values = np.searchsorted(numbers, values) - (numbers[0] == NO_REGION)
        return torch.from_numpy(self.check_count(values, path).astype(np.int32))

    def check_count(self, regions: np.ndarray, what: Any) -> np.ndarray:
        """`regions`; BadSample if there are too many."""
        if (count := int(regions.max(initial=0)) + 1) > MOST_REGIONS:
            raise BadSample(f"{what} has {count} regions; at most {MOST_REGIONS}")
        return regions

    def of(self, image: Tensor, picture: Path | None, name: str) -> Tensor:
        """int32 [H, W], the regions of an image uint8 [3, H, W]; computed and kept if they are not in the cache."""
        path, size = self.file(picture, image), (image.shape[1], image.shape[2])
        if self.folder is None and not path.exists():
            regions = self.check_count(self.compute(image), name).astype(np.uint16)
            content = io.BytesIO()
            Image.fromarray(regions).save(content, "PNG")
            write_whole(path, content.getbuffer(), "the region map")
        return self.read(path, name, size)


class Oversegmented(Dataset[Sample]):
    """`data` with regions int32 [H, W] in the place of labels; -1 is no region.

    A black picture has no region: it is what a data set returns for a file that it skips. If its `on_error` is "skip",
    a picture whose regions can't be read has none either, with a warning.
    """

    def __init__(self, data: Any, regions: Regions) -> None:
        self.data, self.regions = data, regions
        self.on_error = getattr(data, "on_error", "raise")
        files = getattr(data, "images", None)
        self.images = list(files) if isinstance(files, Sequence) else None
        if regions.folder is not None:  # a missing file is an error before the first step
            for index in range(len(self)):
                regions.file(self.picture(index), None)

    def __len__(self) -> int:
        return len(self.data)

    def picture(self, index: int) -> Path | None:
        """The picture's file, if there is one."""
        return Path(self.images[index]) if self.images is not None else None

    def __getitem__(self, index: int) -> Sample:
        image = torch.as_tensor(self.data[index][0]).as_subclass(Tensor)
        if not image.any():
            return self.ignored_sample((image.shape[1], image.shape[2]))
        name = str(self.images[index]) if self.images is not None else f"sample {index}"
        try:
            return tv_tensors.Image(image), tv_tensors.Mask(self.regions.of(image, self.picture(index), name))
        except BadSample as error:
            if self.on_error != "skip":
                raise
            warnings.warn(f"skipped sample {index} ({name}): {error}", stacklevel=2)
            return self.ignored_sample((image.shape[1], image.shape[2]))

    def ignored_sample(self, size: tuple[int, int]) -> Sample:
        """A black picture of `size` = (H, W) without regions."""
        image, regions = torch.zeros(3, *size, dtype=torch.uint8), torch.full(size, NO_REGION, dtype=torch.int32)
        return tv_tensors.Image(image), tv_tensors.Mask(regions)

    def missing(self) -> list[int]:
        """The pictures whose maps are to be computed."""
        if self.regions.folder is not None:
            return []
        found = []
        for index in range(len(self)):
            with contextlib.suppress(Exception):  # a bad picture is said where it is read
                picture = self.picture(index)
                image = None if picture else torch.as_tensor(self.data[index][0]).as_subclass(Tensor)
                if not self.regions.file(picture, image).exists():
                    found.append(index)
        return found

    def prepare(self, workers: int = 0) -> int:
        """Compute all maps that the cache lacks, in `workers` processes, with a progress bar; how many they were.

        If it is interrupted, the same call goes on.
        """
        missing = self.missing()
        if missing:
            segmenter(str(self.regions.method))  # ImportError before any work
            loader = DataLoader(self, None, sampler=missing, num_workers=workers)
            for _ in tqdm(loader, desc="regions", unit="picture", mininterval=1):
                pass
        return len(missing)
