# SPDX-License-Identifier: Apache-2.0
"""What the arms of the small-finding benchmark are taught with: image labels, or the finding's mask as well."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from monai_cnnprimer.training.arms import Arm, ArmOutput

SUPERVISIONS = ("image", "masks")


class ArmLoss(nn.Module):
    """The loss of one arm, or the mean over arms that answer together.

    Args:
        strides: of each arm's dense maps, by the arm's name.
        supervision: `image`: cross-entropy of the image's label; `masks`: to it is added `dense_loss`, averaged over
            the arm's dense maps.

    Raises:
        ValueError: an unknown supervision.
    """

    def __init__(self, strides: Mapping[str, Mapping[str, int]], supervision: str) -> None:
        super().__init__()
        if supervision not in SUPERVISIONS:
            raise ValueError(f"unknown supervision {supervision!r}: choose from {', '.join(SUPERVISIONS)}")
        self.strides = strides
        self.supervision = supervision

    def forward(self, outputs: Mapping[str, ArmOutput], truth: tuple[Tensor, Tensor]) -> Tensor:
        """The loss.

        Args:
            outputs: of each arm, by its name.
            truth: labels `(N,)`, 0 or 1, and masks of the findings `(N, H, W)`, bool.
        """
        return torch.stack([self._of_one(name, output, *truth) for name, output in outputs.items()]).mean()

    def _of_one(self, name: str, output: ArmOutput, label: Tensor, mask: Tensor) -> Tensor:
        loss = binary_cross_entropy_with_logits(output.logit, label.float())
        if self.supervision == "image":
            return loss
        strides = self.strides[name]
        dense = [dense_loss(cells, cover(mask, strides[level])) for level, cells in output.maps.items()]
        return loss + torch.stack(dense).mean()


class Named(nn.Module):
    """One arm that answers as several would: by its name.

    Args:
        arm: the arm.

    Attributes:
        strides: of its dense maps, by its name.
    """

    def __init__(self, arm: Arm) -> None:
        super().__init__()
        self.arm = arm
        self.strides = {arm.name: arm.strides}

    def forward(self, x: Tensor) -> dict[str, ArmOutput]:
        """The arm's answer to images `(N, 1, H, W)`."""
        return {self.arm.name: self.arm(x)}


def cover(mask: Tensor, stride: int) -> Tensor:
    """The cells of a dense map that the finding touches.

    Any pixel makes a cell positive: by its share of the cell, a nodule of 3 pixels would hardly count at stride 32, and
    the coarse arms would be taught less than the fine ones.

    Args:
        mask: `(N, H, W)` bool.
        stride: pixels from cell to cell, 1 or even; cell (0, 0) is centred on pixel (0, 0).

    Returns:
        `(N, h, w)` bool, h = H / stride rounded up.

    Example:
        >>> mask = torch.zeros(1, 8, 8, dtype=torch.bool)
        >>> mask[0, 2, 1] = True
        >>> cover(mask, 4).int().tolist()
        [[[0, 0], [1, 0]]]
    """
    rows, columns = (-(-size // stride) for size in mask.shape[1:])
    touched = nn.functional.max_pool2d(
        nn.functional.pad(mask[:, None].float(), (0, stride, 0, stride)), stride, stride, padding=stride // 2
    )
    return touched[:, 0, :rows, :columns] > 0


def dense_loss(evidence: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of cells in which every finding counts once, whatever its size and the map's stride.

    Half of the mean over the images with a finding of the mean over its cells, and half of the mean over all images of
    the mean over the cells without. A plain mean over cells would weigh findings by their area, and by more at fine
    strides.

    Args:
        evidence: log-odds of the cells `(N, h, w)`.
        target: `(N, h, w)` bool.
    """
    found, free = target.flatten(1), ~target.flatten(1)
    evidence = evidence.flatten(1)
    missed = _mean_where(softplus(-evidence), found)
    alarms = _mean_where(softplus(evidence), free)
    return (missed.sum() / found.any(1).sum().clamp(min=1) + alarms.sum() / free.any(1).sum().clamp(min=1)) / 2


def _mean_where(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean over the chosen cells of each image `(N,)`, 0 where there is none."""
    return (values * chosen).sum(1) / chosen.sum(1).clamp(min=1)
