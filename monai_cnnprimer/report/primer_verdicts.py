# SPDX-License-Identifier: Apache-2.0
"""The primer's claims and, for each, the rule by which a measurement decides; thresholds were set before measuring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import pandas as pd
from scipy.stats import spearmanr

Verdict = Literal["holds", "does not", "depends", "not measured here"]

LOCAL, EVERYWHERE = 0.01, 0.5
DENSE_WEIGHTS, DENSE_TOLERANCE = 50e6, 0.05
EXACT = 1e-4
RIB_OVER_GAP, MARKER_OVER_RIB, MARKER_APART = 1.2, 1.0, 0.5
SAME_TRAINING = 0.5
FIRST_BY_MEDIAN, FIRST_AS_MEDIAN = 0.5, 1.0
DEEPER = 0.5
GRIDS = {"layer1": 56, "layer3": 14, "layer4": 7}
PEAK_KEPT, AVERAGE_KEPT = 0.8, 0.6
FOUND, VANISHED = 0.5, 0.1
FAR_SMALLER, NOT_SMALLER = 0.5, 0.9
GAUSSIAN, NOT_GAUSSIAN = 0.1, 0.3
SHORTCUT = 0.1


class Claim(NamedTuple):
    """What the primer says, and the rule that decides about it."""

    text: str
    rule: str


CLAIMS: dict[str, Claim] = {
    "local": Claim(
        "A convolution is local.",
        f"holds if one pixel changes at most {100 * LOCAL:.0f} % of conv1's units; does not: {100 * EVERYWHERE:.0f} % "
        "or more",
    ),
    "dense": Claim(
        "A dense layer from 224 × 224 pixels into 1,024 units would have 50 M weights; a convolution shares its own.",
        f"holds if the count is within {100 * DENSE_TOLERANCE:.0f} % of 50 M and above conv1's",
    ),
    "shift": Claim(
        "A convolution shifts with its input.",
        f"holds if the error is at most {EXACT:g} of the map at every shift, in every layer measured; does not: at "
        "none but 0",
    ),
    "sobel": Claim(
        "A Sobel-x kernel fires on ribs, and just as well on the “R” marker.",
        f"holds if the 95th percentile of |response| is on ribs at least {RIB_OVER_GAP:g} × that of the lung between "
        f"them, on the marker at least {MARKER_OVER_RIB:g} × the ribs'; does not: marker at most {MARKER_APART:g} ×",
    ),
    "first": Claim(
        "The first kernels hardly move in fine-tuning.",
        f"holds if conv1's relative change is at most {FIRST_BY_MEDIAN:g} × the median layer's in every training; "
        f"does not: at least {FIRST_AS_MEDIAN:g} × in every one",
    ),
    "depth": Claim(
        "Depth does the adapting.",
        f"holds if the rank correlation of relative change with depth is at least {DEEPER:g} in every training; does "
        "not: at most 0 in every one",
    ),
    "grids": Claim(
        "At 224 px layer1 has 56² cells, layer3 14², layer4 7².",
        "holds if the network's own maps have these sizes",
    ),
    "sparse": Claim(
        "layer1 is spatial, layer4 sparse.",
        "holds if sparseness is higher in layer4 than in layer1 and neighbouring cells are less alike; does not: "
        "both the other way round",
    ),
    "peaks": Claim(
        "Max-pooling keeps peaks, average pooling dampens them.",
        f"holds if of a line's contrast max pooling leaves at least {100 * PEAK_KEPT:.0f} % and average pooling at "
        f"most {100 * AVERAGE_KEPT:.0f} %, at every contrast; does not: at none",
    ),
    "vanish": Claim(
        "What is fainter, or smaller than the pooling window, vanishes.",
        f"holds if every line and spot that is found at least {100 * FOUND:.0f} % of the time before pooling is found "
        f"at most {100 * VANISHED:.0f} % after it, at 5 % false alarms; does not: none is",
    ),
    "far_smaller": Claim(
        "The effective receptive field is far smaller than the theoretical one.",
        "holds if, with trained weights, the side of the square as large as the area with 95 % of the mass is at most "
        f"{FAR_SMALLER:g} × that of the theoretical window, as far as it lies inside the image, in every layer; does "
        f"not: at least {NOT_SMALLER:g} × in every layer",
    ),
    "gaussian": Claim(
        "The effective receptive field is roughly Gaussian.",
        "holds if, with trained weights, the relative error of a Gaussian fitted to its profiles along rows and "
        f"columns, averaged over the 4 px of the first two strides, is at most {GAUSSIAN:g} in every layer; does not: "
        f"at least {NOT_GAUSSIAN:g} in every layer",
    ),
    "resolution": Claim(
        "Findings below the resolution of the layer that the head reads are lost.",
        "decided by paired readings with findings of chosen size, by network: `cnnprimer findings`, not this page",
    ),
    "architecture": Claim(
        "What is lost is cured by architecture, not by tuning.",
        "decided by the same readings with other heads on the same encoder: `cnnprimer findings`, not this page",
    ),
    "gradcam": Claim(
        "A Grad-CAM map depends on what the network has learnt.",
        "holds if layer4 maps change when the weights are made random (rank correlation below 0.5, 95 % interval); "
        "does not: they stay alike",
    ),
    "shortcut": Claim(
        "Models take shortcuts (markers, tubes, exposure).",
        f"holds if a marker moves the log odds by at least {100 * SHORTCUT:.0f} % of what a finding does, 95 % "
        f"interval apart from 0; does not: the interval lies within ±{100 * SHORTCUT:.0f} %; depends too where the "
        "finding's own interval includes 0. Tubes and exposure: a later experiment of this package",
    ),
}


def _all_or_none(holds: Sequence[bool], fails: Sequence[bool]) -> Verdict:
    """Holds where it holds everywhere, does not where it fails everywhere, else depends."""
    return "holds" if all(holds) else "does not" if all(fails) else "depends"


def judge_local(touched_share: float) -> Verdict:
    """From the share of conv1's units that one pixel changes."""
    return _all_or_none([touched_share <= LOCAL], [touched_share >= EVERYWHERE])


def judge_dense(dense: int, first_layer: int) -> Verdict:
    """From the counts of weights."""
    near = abs(dense / DENSE_WEIGHTS - 1) <= DENSE_TOLERANCE
    return "holds" if near and first_layer < dense else "does not"


def judge_shift(errors: Sequence[pd.DataFrame]) -> Verdict:
    """From the tables of `explain.kernels.shift_errors`, one a layer."""
    moved = pd.concat(errors).query("shift > 0")["error"]
    return _all_or_none(list(moved <= EXACT), list(moved > EXACT))


def judge_sobel(ribs: float, marker: float, between: float) -> Verdict:
    """From 95th percentiles of the absolute response on ribs, on the marker, on lung between ribs."""
    fires, alike = ribs >= RIB_OVER_GAP * between, marker >= MARKER_OVER_RIB * ribs
    return _all_or_none([fires, alike], [marker <= MARKER_APART * ribs])


def judge_first(changes: Mapping[str, pd.DataFrame]) -> Verdict:
    """From the tables of `explain.fine_tuning.relative_change`, one a training."""
    tables = of_one_training(changes).values()
    ratios = [table["relative_change"].iloc[0] / table["relative_change"].median() for table in tables]
    if not ratios:
        return "not measured here"
    return _all_or_none([ratio <= FIRST_BY_MEDIAN for ratio in ratios], [ratio >= FIRST_AS_MEDIAN for ratio in ratios])


def judge_depth(changes: Mapping[str, pd.DataFrame]) -> Verdict:
    """From the same tables."""
    correlations = [depth_correlation(table) for table in of_one_training(changes).values()]
    if not correlations:
        return "not measured here"
    return _all_or_none([value >= DEEPER for value in correlations], [value <= 0 for value in correlations])


def depth_correlation(table: pd.DataFrame) -> float:
    """Spearman's correlation of a layer's relative change with its depth."""
    return float(spearmanr(table["depth"], table["relative_change"]).statistic)


def of_one_training(changes: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Those that are before and after one training: the weights moved, and still point the same way."""
    return {
        name: table
        for name, table in changes.items()
        if table["cosine"].median() >= SAME_TRAINING and table["relative_change"].median() > 0
    }


def judge_grids(grids: Mapping[str, Sequence[int]]) -> Verdict:
    """From cells of each layer at 224 pixels."""
    same = [tuple(grids[layer]) == (side, side) for layer, side in GRIDS.items()]
    return _all_or_none(same, [not value for value in same])


def judge_sparse(sparseness: tuple[float, float], alike: tuple[float, float]) -> Verdict:
    """From sparseness and likeness of neighbouring cells, each in (layer1, layer4)."""
    signs = [sparseness[1] > sparseness[0], alike[1] < alike[0]]
    return _all_or_none(signs, [not sign for sign in signs])


def judge_peaks(lines: pd.DataFrame) -> Verdict:
    """From a table of `explain.pooling.pooled_line`."""
    kept = lines.pivot(index="contrast", columns="pooling", values="kept")
    both = (kept["max"] >= PEAK_KEPT) & (kept["average"] <= AVERAGE_KEPT)
    return _all_or_none(list(both), list(~both))


def judge_vanish(tables: Sequence[pd.DataFrame]) -> Verdict:
    """From such tables: of what can be found before pooling, how much is lost after it."""
    wide = pd.concat(tables, keys=range(len(tables)), names=["table"]).reset_index("table")
    found = wide.pivot(index=["table", "window", "contrast"], columns="pooling", values="detected")
    visible = found[found["none"] >= FOUND]
    lost = (visible[["max", "average"]] <= VANISHED).to_numpy().ravel()
    return _all_or_none(list(lost), list(~lost)) if len(lost) else "not measured here"


def judge_far_smaller(ratios: Sequence[float]) -> Verdict:
    """From effective by theoretical side inside the image, one a layer."""
    return _all_or_none([ratio <= FAR_SMALLER for ratio in ratios], [ratio >= NOT_SMALLER for ratio in ratios])


def judge_gaussian(errors: Sequence[float]) -> Verdict:
    """From relative errors of the Gaussian fit to the profiles, one a layer."""
    return _all_or_none([error <= GAUSSIAN for error in errors], [error >= NOT_GAUSSIAN for error in errors])


def judge_gradcam(fit: bool | None) -> Verdict:
    """From the randomisation check: True when maps depend on the weights, None when that cannot be told."""
    return "depends" if fit is None else "holds" if fit else "does not"


def judge_shortcut(marker: float, marked: tuple[float, float], finding: float, found: tuple[float, float]) -> Verdict:
    """From the paired changes of the log odds by a marker and by a finding: means and 95 % intervals."""
    if not _apart_from_0(found):
        return "depends"
    limit = SHORTCUT * abs(finding)
    moves = abs(marker) >= limit and _apart_from_0(marked)
    return _all_or_none([moves], [-limit <= marked[0] and marked[1] <= limit])


def _apart_from_0(interval: tuple[float, float]) -> bool:
    return interval[0] > 0 or interval[1] < 0
