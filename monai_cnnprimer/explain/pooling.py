# SPDX-License-Identifier: Apache-2.0
"""What a pooling window keeps of a thin line, or a spot, in noise, over its contrast."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

POOLINGS: dict[str, Callable[[Tensor, int], Tensor]] = {"max": functional.max_pool2d, "average": functional.avg_pool2d}


def pooled_line(
    contrasts: Sequence[float],
    width: int = 2,
    window: int = 4,
    length: int | None = None,
    windows: int = 40_000,
    false_alarms: float = 0.05,
    seed: int = 0,
) -> pd.DataFrame:
    """A line of `width` pixels in windows of `window` x `window`, in white Gaussian noise, before and after pooling.

    Lengths are pixels, grey levels are multiples of the noise's standard deviation. The line is vertical and lies
    wholly inside the window, in its middle; windows do not overlap. The same noise serves every contrast. "none" is the
    best that could be read before pooling: the mean over the line's own pixels, its place being known.

    Args:
        contrasts: of the line above its surroundings, above 0.
        width: of the line.
        window: side and stride of the pooling.
        length: of the line; None for the whole window. A line as long as wide is a spot.
        windows: with the line, and as many without.
        false_alarms: share of windows without a line that the detection threshold lets through.
        seed: of the noise.

    Returns:
        One row for each pooling (`max`, `average`, `none`) and contrast: `pooling`, `window`, `contrast`, `kept` (rise
        of the mean by the contrast), `d_prime` (rise of the mean by the root mean variance), `detected` (share of
        windows with the line above the threshold).

    Raises:
        ValueError: a contrast not above 0, or a line that does not fit into the window.

    Example:
        >>> table = pooled_line([1.0, 8.0], windows=1000).round(3)
        >>> table[table["pooling"] == "average"]["kept"].tolist()
        [0.5, 0.5]
    """
    length = window if length is None else length
    if min(contrasts) <= 0 or not 0 < width <= window or not 0 < length <= window:
        raise ValueError("contrasts must be above 0, and the line at least one pixel and at most the window on a side")
    generator = torch.Generator().manual_seed(seed)
    empty, noise = (torch.randn(windows, 1, window, window, generator=generator) for _ in range(2))
    line = torch.zeros(window, window)
    top, left = (window - length) // 2, (window - width) // 2
    line[top : top + length, left : left + width] = 1
    rows = []
    for name, read in (POOLINGS | {"none": _known_place(line)}).items():
        without, before = _read(read, empty, window), _read(read, noise, window)
        threshold = np.quantile(without, 1 - false_alarms)
        for contrast in contrasts:
            found = _read(read, noise + contrast * line, window)
            rise = (found - before).mean()
            spread = np.sqrt((found.var() + without.var()) / 2)
            detected = (found > threshold).mean()
            rows.append((name, window, contrast, rise / contrast, rise / spread, detected))
    return pd.DataFrame(rows, columns=["pooling", "window", "contrast", "kept", "d_prime", "detected"])


def _known_place(line: Tensor) -> Callable[[Tensor, int], Tensor]:
    return lambda images, window: (images * line).sum(dim=(2, 3)) / line.sum()


def _read(read: Callable[[Tensor, int], Tensor], images: Tensor, window: int) -> NDArray[np.float64]:
    return read(images, window).flatten().double().numpy()
