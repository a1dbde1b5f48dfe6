# SPDX-License-Identifier: Apache-2.0
"""Relatives of Grad-CAM and other libraries: the same maps, from other formulas."""

from __future__ import annotations

import pytest
import torch
from monai.visualize import GradCAMpp
from test_gradcam import LAYERS, assert_close, images, reference_maps, small_resnet
from torch import Tensor, nn

from monai_cnnprimer.explain.gradcam import GradCam
from monai_cnnprimer.explain.gradcam_variants import closed_form_gradcam, gradcam_plus_plus

CLASSES = torch.tensor([0, 2, 1, 1, 0, 2, 2])


class Tail(nn.Module):
    """Activations behind a ReLU, then ReLU and pool: linear in pieces, as Grad-CAM++ assumes."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.body = nn.Sequential(nn.Conv2d(1, 3, 3, stride=2), nn.ReLU())
        self.head = nn.Sequential(nn.Conv2d(3, 4, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def derivatives(score: Tensor, activation: Tensor, unit: int) -> list[float]:
    """First to third derivative of exp(score) along one unit of the activation, by autograd."""
    value, found = score.exp(), []
    for _ in range(3):
        (gradient,) = torch.autograd.grad(value, activation, create_graph=True)
        value = gradient.flatten()[unit]
        found.append(value.item())
    return found


def plus_plus_of_one(network: Tail, x: Tensor, target: int) -> Tensor:
    """Grad-CAM++ of one case from the definition: alpha = Y'' / (2 Y'' + sum(A) Y'''), unit by unit."""
    activation = network.body(x).detach().requires_grad_()
    sums = activation.detach().sum(dim=(2, 3))[0]
    weights, size = torch.zeros(len(sums)), activation[0, 0].numel()
    for unit in range(activation.numel()):
        first, second, third = derivatives(network.head(activation)[0, target], activation, unit)
        denominator = 2 * second + float(sums[unit // size]) * third
        weights[unit // size] += second / denominator * max(first, 0) if denominator else 0
    return (weights[:, None, None] * activation.detach()[0]).sum(dim=0)


def test_grad_cam_plus_plus_equals_its_definition_case_by_case():
    network = Tail().double()
    x, classes = images(3)[:, :, 10:17, 20:27].double(), torch.tensor([1, 0, 1])
    with torch.no_grad(), GradCam(network, "body", classes, weigh=gradcam_plus_plus) as cam:
        logits = network(x)
    assert cam.maps["body"].abs().amax(dim=(1, 2, 3)).min() > 0
    for case in range(3):
        scale = float(logits[case, classes[case]].exp())
        expected = plus_plus_of_one(network, x[case : case + 1], int(classes[case]))
        assert_close(scale * cam.maps["body"][case, 0].double(), expected.double(), 1e-5)


def test_grad_cam_plus_plus_of_one_case_is_that_of_monai_where_a_channel_has_one_gradient():
    """Elsewhere theirs sums A g^3 over the cells where the paper has the sum of A times g^3 of the cell."""
    network, x = small_resnet(), images(1)
    with torch.no_grad(), GradCam(network, "layer4", target=1, weigh=gradcam_plus_plus) as cam:
        logits = network(x)
    theirs = GradCAMpp(nn_module=network, target_layers="layer4").compute_map(x, class_idx=1).detach()
    assert_close(logits[0, 1].exp() * cam.maps["layer4"], theirs, 1e-3)  # they add 1e-7 to a denominator


def test_grad_cam_plus_plus_refuses_activations_for_which_it_is_not_defined():
    with pytest.raises(ValueError, match="take a layer behind a ReLU"):
        gradcam_plus_plus(torch.full((1, 1, 2, 2), -1.0), torch.ones(1, 1, 2, 2))
    assert gradcam_plus_plus(torch.full((1, 1, 2, 2), -1.0), -torch.ones(1, 1, 2, 2)).tolist() == [[0.0]]


def test_closed_form_equals_the_gradient_behind_pool_and_linear():
    network, x = small_resnet(), images(7)
    kept = []
    handle = network.layer4.register_forward_hook(lambda module, args, output: kept.append(output.detach().clone()))
    with torch.no_grad(), GradCam(network, "layer4", CLASSES) as cam:
        network(x)
    handle.remove()
    assert_close(closed_form_gradcam(kept[0], network.fc.weight.detach(), CLASSES), cam.maps["layer4"], 1e-6)


def test_closed_form_in_double_precision():
    network, x = small_resnet().double(), images(7).double()
    kept = []
    network.layer4.register_forward_hook(lambda module, args, output: kept.append(output.detach().clone()))
    with torch.no_grad():
        network(x)
    expected = reference_maps(network, x, CLASSES, "layer4")
    assert_close(closed_form_gradcam(kept[0], network.fc.weight.detach(), CLASSES), expected, 1e-9)


def test_maps_equal_those_of_captum():
    attr = pytest.importorskip("captum.attr")
    network, x = small_resnet(), images(7)
    with torch.no_grad(), GradCam(network, LAYERS, CLASSES) as cam:
        network(x)
    for layer in LAYERS:
        theirs = attr.LayerGradCam(network, network.get_submodule(layer)).attribute(x, target=CLASSES)
        assert_close(cam.maps[layer], theirs.detach())
