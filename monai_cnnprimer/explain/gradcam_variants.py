# SPDX-License-Identifier: Apache-2.0
"""Two relatives of Grad-CAM to check it against: Grad-CAM++ and the closed form behind pool and linear layer."""

from __future__ import annotations

import torch
from torch import Tensor


def gradcam_plus_plus(activation: Tensor, gradient: Tensor) -> Tensor:
    """Channel weights of Grad-CAM++ (Chattopadhay et al., 2018, arXiv:1710.11063); give it to `GradCam(weigh=)`.

    As published, the explained quantity is exp(score), whose derivatives have a closed form. With g the gradient of the
    score at a unit and S the sum of its channel's activations, equation 19 shortens to alpha = 1 / (2 + S g). The
    common factor exp(score) is left out: it scales a case's map and can overflow.

    Args:
        activation: `(N, C, h, w)` behind a ReLU.
        gradient: of the score, `(N, C, h, w)`.

    Returns:
        `(N, C)`, not negative.

    Raises:
        ValueError: activations so far below zero that alpha is not positive, for which the method is not defined.

    Example:
        >>> gradcam_plus_plus(torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[2.0, -1.0]]]))
        tensor([[0.5000]])
    """
    rising = gradient.flatten(2).relu()
    denominators = 2 + activation.flatten(2).sum(dim=2, keepdim=True) * rising
    if bool((denominators <= 0).any()):
        raise ValueError("Grad-CAM++ is not defined for activations this far below zero; take a layer behind a ReLU")
    return (rising / denominators).sum(dim=2)


def closed_form_gradcam(activation: Tensor, fc_weight: Tensor, classes: Tensor) -> Tensor:
    """Grad-CAM of the layer before global average pool and linear layer, without a gradient: CAM over the cell count.

    There a class's gradient is its weight divided by the number of cells, so that Grad-CAM equals the class activation
    map of Zhou et al. (2016, arXiv:1512.04150) divided by h w.

    Args:
        activation: what is pooled, `(N, C, h, w)`.
        fc_weight: of the linear layer, `(K, C)`.
        classes: one a case, LongTensor `(N,)`.

    Returns:
        `(N, 1, h, w)`, signed, in the type of `activation`.

    Example:
        >>> weight = torch.tensor([[0.0], [6.0]])
        >>> closed_form_gradcam(torch.ones(1, 1, 1, 2), weight, torch.tensor([1]))
        tensor([[[[3., 3.]]]])
    """
    cells = activation.shape[2] * activation.shape[3]
    return torch.einsum("nc,nchw->nhw", fc_weight[classes] / cells, activation).unsqueeze(1)
