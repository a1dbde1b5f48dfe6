# SPDX-License-Identifier: Apache-2.0
"""How good a map is: where its mass lies, whether its maximum hits, and what its pixels do to the probability."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
import SimpleITK
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter
from scipy.stats import bootstrap
from torch import Tensor
from torch.nn import Module

from monai_cnnprimer.explain.bare_copy import bare_copy

Baseline = Literal["blur", "mean"]

REGIONS = ("lung", "heart", "marker", "finding")
_BATCH = 16
_Z = 1.959964  # of a two-sided 95 % interval


class ExchangeCurves(NamedTuple):
    """A class's probability after 0, 1, ... all steps of exchanging pixels, `(steps + 1,)` each.

    Attributes:
        insertion: from the baseline (first value) to the image (last).
        deletion: from the image (first value) to its mean grey (last).
    """

    insertion: NDArray[np.float64]
    deletion: NDArray[np.float64]

    @property
    def areas(self) -> tuple[float, float]:
        """Areas under both curves over the share of pixels exchanged, 0..1 each."""
        return _area(self.insertion), _area(self.deletion)


class Summary(NamedTuple):
    """A measure over cases: mean, 95 % interval of the mean, and how many cases have the measure."""

    mean: float
    low: float
    high: float
    n: int


def map_quality(
    heat: NDArray[np.floating], masks: Mapping[str, NDArray[np.bool_]], tolerance_px: float = 0.0
) -> dict[str, float]:
    """Where a map's positive part lies, and where it should.

    | key | meaning | by chance |
    |---|---|---|
    | `REGION_area` | share of the image, 0..1 | |
    | `REGION_pointing` | pointing game (Zhang et al., 2018, arXiv:1608.00507): 1 for a hit, else 0 | area share |
    | `REGION_mass` | share of the mass in the region, 0..1 | area share |
    | `REGION_mass_per_area` | share of the mass by share of the area, from 0 | 1 |
    | `outside_lung_mass_per_area` | the same for all that is not lung | 1 |
    | `finding_iou` | the finding and the pixels above Otsu's threshold (1979): intersection over union, 0..1 | |

    A hit: the maximum lies in the region, or at most `tolerance_px` from it. Of several equal maxima, the share that
    hits counts.

    A region without a mask has no keys. Not a number are: all but the area for a map without positive mass, all of a
    region whose mask is empty, outside the lungs when they cover all, and the last for a map of one value.

    Args:
        heat: signed map `(H, W)`, aligned with the image.
        masks: region name to boolean mask `(H, W)`; the regions are lung, heart, marker and finding.
        tolerance_px: of the pointing game; Zhang et al. allow 15 pixels, the default none.

    Raises:
        ValueError: another region, or a mask of another shape or type.

    Example:
        >>> heat = np.array([[3.0, 1.0, -5.0, 0.0]])
        >>> map_quality(heat, {"heart": np.array([[True, False, False, False]])})
        {'heart_area': 0.25, 'heart_pointing': 1.0, 'heart_mass': 0.75, 'heart_mass_per_area': 3.0}
    """
    for region, mask in masks.items():
        if region not in REGIONS:
            raise ValueError(f"no region {region!r}; choose among {', '.join(REGIONS)}")
        if mask.shape != heat.shape or mask.dtype != np.bool_:
            raise ValueError(f"mask {region!r} is {mask.dtype} {mask.shape}, not bool {heat.shape} as the map")
    mass = _mass(heat)
    quality: dict[str, float] = {}
    for region, mask in masks.items():
        quality[f"{region}_area"] = float(mask.mean()) if mask.any() else math.nan
        quality[f"{region}_pointing"] = _pointing(mass, mask, tolerance_px)
        quality[f"{region}_mass"] = float(mass[mask].sum()) if mask.any() else math.nan
        quality[f"{region}_mass_per_area"] = _mass_per_area(mass, mask)
    if "lung" in masks:
        known = masks["lung"].any()
        quality["outside_lung_mass_per_area"] = _mass_per_area(mass, ~masks["lung"]) if known else math.nan
    if "finding" in masks:
        quality["finding_iou"] = _iou(mass, masks["finding"])
    return quality


def summarise_quality(cases: Sequence[Mapping[str, float]]) -> dict[str, Summary]:
    """Means over cases with 95 % intervals: Wilson's for the pointing game, else by bootstrap over the cases.

    Args:
        cases: the measures of each case, as from `map_quality`; a key may be missing in some.

    Returns:
        Key to summary, in the order of first appearance. Cases without a value do not count; with fewer than two the
        interval is not a number.

    Example:
        >>> summarise_quality([{"heart_pointing": 1.0}, {"heart_pointing": 0.0}, {"heart_pointing": math.nan}])
        {'heart_pointing': Summary(mean=0.5, low=0.0945..., high=0.9054..., n=2)}
    """
    values: dict[str, list[float]] = {key: [] for case in cases for key in case}
    for case in cases:
        for key, value in case.items():
            values[key] += [] if math.isnan(value) else [float(value)]
    return {key: _summary(np.array(kept), hits=key.endswith("_pointing")) for key, kept in values.items()}


def exchange_curves(
    network: Module,
    image: Tensor,
    heat: NDArray[np.floating],
    target_class: int,
    steps: int = 16,
    baseline: Baseline = "blur",
) -> ExchangeCurves:
    """A class's probability while pixels are inserted and deleted in the order of a map, the highest first.

    Petsiuk et al. (2018, RISE, arXiv:1806.07421): the sooner the probability rises, the larger the area under the first
    curve; the sooner it falls, the smaller the area under the second. They compare maps of one case, not cases, since
    both depend on the network's confidence. Where it calls the image without its detail the same class, as the curves'
    ends show, they say nothing.

    Insertion starts from `baseline` and puts the image's pixels back. Deletion replaces them by the image's mean grey.

    Args:
        network: `(N, C, H, W)` to logits `(N, K)`; a copy of it runs, in evaluation mode and without hooks.
        image: `(1, C, H, W)`, as the network takes it.
        heat: signed map `(H, W)`, aligned with the image. Pixels of equal value go row by row.
        target_class: by softmax, of a single logit by the sigmoid (class 1).
        steps: in how many equal parts the pixels are exchanged.
        baseline: `"blur"`, the image under a Gaussian of sigma 1/10 of its shorter side, or `"mean"`, its mean grey.

    Raises:
        ValueError: shapes do not match, no such class, no such baseline.
    """
    if image.ndim != 4 or len(image) != 1 or image.shape[2:] != heat.shape:
        raise ValueError(f"image {tuple(image.shape)} and map {heat.shape} are not (1, C, H, W) and (H, W)")
    if baseline not in get_args(Baseline):
        raise ValueError(f"baseline {baseline!r}; choose among {', '.join(get_args(Baseline))}")
    image = image.detach().as_subclass(Tensor)
    mean = image.mean(dim=(2, 3), keepdim=True).expand_as(image)
    start = _blurred(image) if baseline == "blur" else mean
    exchanged = _exchanged(heat, steps).to(image.device)
    copy = bare_copy(network).eval()
    return ExchangeCurves(
        insertion=_probabilities(copy, start, image, exchanged, target_class),
        deletion=_probabilities(copy, image, mean, exchanged, target_class),
    )


def _mass(heat: NDArray[np.floating]) -> NDArray[np.float64]:
    """The positive part as shares of its sum; not a number where there is none."""
    positive = np.clip(heat, 0, None).astype(np.float64)
    total = positive.sum()
    return positive / total if 0 < total < math.inf else np.full_like(positive, math.nan)


def _pointing(mass: NDArray[np.float64], mask: NDArray[np.bool_], tolerance_px: float) -> float:
    if not mask.any() or np.isnan(mass).any():
        return math.nan
    # Beyond the outermost centres an aligned map repeats one value, up to rounding.
    maxima = mass >= mass.max() * (1 - 1e-6)
    return float((distance_transform_edt(~mask)[maxima] <= tolerance_px).mean())


def _mass_per_area(mass: NDArray[np.float64], mask: NDArray[np.bool_]) -> float:
    return float(mass[mask].sum() / mask.mean()) if mask.any() else math.nan


def _iou(mass: NDArray[np.float64], mask: NDArray[np.bool_]) -> float:
    if not mask.any() or not np.ptp(mass) > 0:
        return math.nan
    # It finds no threshold among values of 1e-12.
    image = SimpleITK.GetImageFromArray(mass / mass.max())
    above = SimpleITK.GetArrayFromImage(SimpleITK.OtsuThreshold(image, 0, 1, 256)).astype(bool)
    return float((above & mask).sum() / (above | mask).sum())


def _summary(values: NDArray[np.float64], *, hits: bool) -> Summary:
    n = len(values)
    if n < 2:
        return Summary(float(values.mean()) if n else math.nan, math.nan, math.nan, n)
    mean = float(values.mean())
    if hits:
        # Wilson (1927), which has a width also when all hit.
        centre = (mean + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
        half = _Z / (1 + _Z**2 / n) * math.sqrt(mean * (1 - mean) / n + _Z**2 / (4 * n**2))
        return Summary(mean, centre - half, centre + half, n)
    interval = bootstrap((values,), np.mean, method="percentile", rng=0).confidence_interval
    return Summary(mean, float(interval.low), float(interval.high), n)


def _blurred(image: Tensor) -> Tensor:
    sigma = min(image.shape[2:]) / 10
    blurred = gaussian_filter(image.cpu().numpy(), (0, 0, sigma, sigma), mode="nearest")
    return torch.from_numpy(blurred).to(image)


def _exchanged(heat: NDArray[np.floating], steps: int) -> Tensor:
    """Which pixels are exchanged after each step, `(steps + 1, 1, H, W)`: none after step 0, all after the last."""
    ranks = np.empty(heat.size, dtype=np.int64)
    ranks[np.argsort(-heat, axis=None, kind="stable")] = np.arange(heat.size)
    counts = np.linspace(0, heat.size, steps + 1).round()
    return torch.from_numpy(ranks.reshape(heat.shape) < counts[:, None, None, None])


def _probabilities(
    network: Module, old: Tensor, new: Tensor, exchanged: Tensor, target_class: int
) -> NDArray[np.float64]:
    with torch.no_grad():
        logits = torch.cat([network(torch.where(part, new, old)) for part in exchanged.split(_BATCH)]).double()
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
    if not 0 <= target_class < logits.shape[1]:
        raise ValueError(f"no class {target_class}; the network has {logits.shape[1]}")
    return logits.softmax(dim=1)[:, target_class].cpu().numpy()


def _area(curve: NDArray[np.float64]) -> float:
    """Area under a curve over the share of pixels exchanged."""
    return float(np.trapezoid(curve)) / (len(curve) - 1)
