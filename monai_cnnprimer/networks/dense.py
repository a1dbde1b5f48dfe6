# SPDX-License-Identifier: Apache-2.0
"""Classifiers that give logits at every cell of one or several maps, and pool them to the image's logits."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from monai_cnnprimer.networks.export import Traced
from monai_cnnprimer.networks.resnet import RadiographResNet

SHARPNESS = 5.0


def log_mean_exp(values: Tensor, sharpness: Tensor | float, dim: int) -> Tensor:
    """`log(mean(exp(r x))) / r`: between the mean (r to 0) and the maximum (r to infinity) of `values`.

    Log-sum-exp pooling as normalised by Pinheiro and Collobert (2015, arXiv:1411.6228) and Wang et al. (2017,
    arXiv:1705.02315): the sum is divided by the number of values, so that the result does not grow with their number.

    Args:
        values: any shape, finite.
        sharpness: r > 0.
        dim: the dimension that is pooled.

    Returns:
        `values` without `dim`, never below their mean, never above their maximum.

    Example:
        >>> log_mean_exp(torch.tensor([0.0, 0.0, 0.0, 8.0]), sharpness=5.0, dim=0)
        tensor(7.7227)
    """
    largest = values.detach().amax(dim, keepdim=True)
    return largest.squeeze(dim) + (sharpness * (values - largest)).exp().mean(dim).log() / sharpness


def centred(logits: Tensor) -> Tensor:
    """Logits `(N, K, ...)` with their mean over the classes taken away, which changes no probability."""
    return logits - logits.mean(dim=1, keepdim=True)


class DenseLogits(nn.Module):
    """Logits of every cell, `(N, C, h, w) -> (N, K, h, w)`, of sum zero: with two classes, ∓ half the log-odds.

    Begins near zero, whatever the features: weights of standard deviation 0.01, bias 0 (Lin et al., 2017,
    arXiv:1708.02002).

    Args:
        channels: of the features, C.
        num_classes: K.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, num_classes, kernel_size=1)
        nn.init.normal_(self.conv.weight, std=0.01)
        nn.init.zeros_(torch.as_tensor(self.conv.bias))

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(N, K, h, w)`."""
        return centred(self.conv(x))


class EvidencePool(nn.Module):
    """Pools the evidence for each finding over the cells of each map, then over the maps, by `log_mean_exp`.

    The evidence of class k at a cell is its log-odds against class 0 (no finding), z = d_k - d_0. Pooled over maps l
    of n_l cells each it is `Z = log(mean_l(mean_i(exp(r z_li)))) / r`, with the mean over maps outside: every map
    covers the image once, so it counts once, however fine. The image's logits are those of one cell with evidence Z:
    `(-Z/2, Z/2)` for two classes. Image size does not enter.

    r is fixed: next to a learnt scale of z it would only decide how few cells an image is judged by, and let arms of
    one experiment differ in pooling. It is saved with the weights, since they mean nothing without it. At r = 5 one
    cell in 12,544 (P2 of a 224-pixel image counted with the other three maps) loses 1.9 of its evidence; at r = 1 it
    would lose 9.4.

    Args:
        sharpness: r > 0.
    """

    sharpness: Tensor

    def __init__(self, sharpness: float = SHARPNESS) -> None:
        super().__init__()
        if not sharpness > 0:
            raise ValueError(
                f"sharpness {sharpness}: must be positive; small values average, large ones take the maximum"
            )
        self.register_buffer("sharpness", torch.tensor(float(sharpness)))

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Image logits `(N, K)`, in float32, of dense logits `(N, K, h, w)`."""
        evidence = [(logits[:, 1:] - logits[:, :1]).float().flatten(2) for logits in maps]
        levels = torch.stack([log_mean_exp(cells, self.sharpness.float(), 2) for cells in evidence])
        pooled = log_mean_exp(levels, self.sharpness.float(), 0)
        return centred(nn.functional.pad(pooled, (1, 0)))


class DenseClassifier(RadiographResNet):
    """ResNet-50 encoder, a neck, dense logits, one pool: what the classifiers with dense maps share.

    The encoder's modules and state-dict keys are those of `resnet50_classifier` at the same seed, so that `layer1` to
    `layer4` can be hooked, and encoders exchanged, under the same names. Each dense map leaves a module of its own,
    `dense.p2` and so on, that runs once in a forward: a hook sees it there while the network's output stays logits. The
    levels therefore do not share it; Lin et al. (2017, arXiv:1612.03144) found sharing to make little difference.

    Args:
        num_classes: number of logits K, at least two: class 0 is no finding.
        sharpness: of the pool, see `EvidencePool`.

    Attributes:
        strides: name of each dense map to the pixels of the input from cell to cell; cell (0, 0) is centred on pixel
            (0, 0), as everywhere in a ResNet.
        channels: of the neck's output.
        neck: from the encoder's features to one map of `channels` for each of `strides`.
    """

    strides: ClassVar[dict[str, int]]
    channels: ClassVar[int]

    def __init__(self, num_classes: int = 2, sharpness: float = SHARPNESS) -> None:
        if num_classes < 2:
            raise ValueError(f"num_classes {num_classes}: dense logits need two, no finding (class 0) and a finding")
        super().__init__(num_classes)
        # Built and taken away: the same seed gives the same encoder with and without the layer.
        del self.avgpool, self.fc
        self.neck = self.build_neck()
        self.dense = nn.ModuleDict({name: DenseLogits(self.channels, num_classes) for name in self.strides})
        self.pool = EvidencePool(sharpness)

    def build_neck(self) -> nn.Module:
        """The module between encoder and dense logits, `list[Tensor] -> list[Tensor]`."""
        raise NotImplementedError

    def features(self, x: Tensor) -> list[Tensor]:
        """C2 to C5 of images `(N, 1, H, W)`: the outputs of `layer1` to `layer4`."""
        c2 = self.layer1(self.maxpool(self.stem(x)))
        c3 = self.layer2(c2)
        c4 = self.layer3(c3)
        return [c2, c3, c4, self.layer4(c4)]

    def dense_maps(self, x: Tensor) -> dict[str, Tensor]:
        """Dense logits of images `(N, 1, H, W)`.

        Args:
            x: as for the forward, any H and W of 32 pixels or more.

        Returns:
            Name (as in `strides`) to `(N, K, h, w)`, finest first, h = H / stride rounded up. The log-odds of a cell
            are `map[:, 1] - map[:, 0]`, its probabilities `map.softmax(1)`.
        """
        maps = self.neck(self.features(x))
        return {name: head(cells) for (name, head), cells in zip(self.dense.items(), maps, strict=True)}

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(N, K)` in float32 of images `(N, 1, H, W)`; `logits[:, 1] - logits[:, 0]` is the pooled evidence."""
        return self.pool(list(self.dense_maps(x).values()))

    def __prepare_scriptable__(self) -> nn.Module:
        """What `torch.jit.script` takes in this network's place, since it cannot read loops over two lists: a trace."""
        return Traced(self)
