# SPDX-License-Identifier: Apache-2.0
"""The primer's section on receptive fields, theoretical and effective."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from monai_cnnprimer.explain.effective_receptive_field import effective_receptive_fields, random_twin
from monai_cnnprimer.explain.receptive_field_summary import EffectiveReceptiveField, GaussianFit
from monai_cnnprimer.figures.receptive_field import LayerFields, MeasuredField, receptive_fields_png
from monai_cnnprimer.report import primer_verdicts as verdicts
from monai_cnnprimer.report.primer_page import Result, Section, Shown
from monai_cnnprimer.report.primer_subject import Study

LAYERS = ("layer1", "layer3", "layer4")
SEEDS = 2
TEETH_PX = 4  # conv1 and the first pooling halve the grid twice, and leave teeth of that period in every field
NODULE_MM = 10.0  # the size below which a nodule is called small


def field_section(study: Study) -> Section:
    """Size and shape of effective fields, and what one cell of the last layer covers."""
    fields = _measure(study)
    trained = fields["trained"]
    ratios = {layer: _side(field) / visible_side(field) for layer, field in trained.items()}
    profiles = {layer: profile_fit(field) for layer, field in trained.items()}
    random = {layer: profile_fit(field) for layer, field in fields["random"].items()}
    results = [
        Result(
            "far_smaller",
            "; ".join(_size_in_words(layer, field, ratios[layer]) for layer, field in trained.items()) + ".",
            verdicts.judge_far_smaller(list(ratios.values())),
        ),
        Result(
            "gaussian",
            f"Error of the fit to the profiles, over {TEETH_PX} px: "
            + "; ".join(
                f"{layer} {profiles[layer].error:.2f} (random weights {random[layer].error:.2f})" for layer in profiles
            )
            + ". Pixel by pixel, strides and the draws' scatter included: "
            + "; ".join(f"{layer} {field.gaussian.error:.2f}" for layer, field in trained.items())
            + ".",
            verdicts.judge_gaussian([fit.error for fit in profiles.values()]),
        ),
        Result("resolution", _cell_in_words(trained["layer4"]), "not measured here"),
        Result(
            "architecture",
            "Not measured here: one network cannot tell. `cnnprimer findings` sets it beside the alternatives.",
            "not measured here",
        ),
    ]
    drawn = [_drawn(layer, {weights: layers[layer] for weights, layers in fields.items()}) for layer in LAYERS]
    title, spacing = "Where the central unit looks", study.patients[0].spacing_mm
    figures = [
        Shown(
            receptive_fields_png(study.patients[0].healthy[0, 0].numpy(), drawn, title, spacing),
            f"Mean squared gradient of the central unit, {len(study.patients)} healthy phantoms, {SEEDS} random draws "
            "of channel signs each, at the network's input; the radiograph is the first phantom. Rings have the area "
            "of the pixels that hold 50 % and 95 % of the mass.",
        )
    ]
    method = (
        "The theoretical field is derived from the network's operations. The effective one is the squared gradient "
        "of the central unit with respect to every pixel (the power matters: of the absolute gradient the width is "
        "√2 times as large). Random weights are those of the same architecture, initialised anew, with batch "
        "statistics of these images.",
        f"Strides leave teeth of {TEETH_PX} px in every field. Profiles are averaged over that length before a "
        "Gaussian is fitted; the error pixel by pixel stands beside it.",
        "A field larger than the image is clipped by it. It is then compared with the part of the theoretical window "
        "inside the image, so that the image's border is not taken for a property of the network.",
    )
    references = (
        "Luo et al., 2016, NeurIPS, arXiv:1701.04128, effective receptive fields",
        "Araujo et al., 2019, Distill, doi 10.23915/distill.00021, theoretical ones",
    )
    return Section("Receptive fields", method, results, figures, references)


def _measure(study: Study) -> dict[str, dict[str, EffectiveReceptiveField]]:
    """Weights (trained, random) to layer to field, over the healthy phantoms."""
    images = study.images("healthy")
    names = {study.model.layer(short): short for short in LAYERS}
    networks = {
        "trained": study.model.network,
        "random": random_twin(study.model.network, study.seed, images),
    }
    fields = {}
    for weights, network in networks.items():
        found = effective_receptive_fields(
            network, list(names), images, SEEDS, seed=study.seed, spacing_mm=study.patients[0].spacing_mm
        )
        fields[weights] = {names[name]: field for name, field in found.items()}
    return fields


def profile_fit(field: EffectiveReceptiveField) -> GaussianFit:
    """The Gaussian nearest to the product of the field's profiles, each averaged over `TEETH_PX` pixels and centred."""
    window = np.array([0.5, *[1.0] * (TEETH_PX - 1), 0.5]) / TEETH_PX
    rows, columns = (np.convolve(profile, window, mode="same") for profile in field.profiles)
    return replace(field, map=torch.from_numpy(np.outer(rows, columns))).gaussian


def _side(field: EffectiveReceptiveField) -> float:
    """Of the square as large as the area with 95 % of the mass."""
    return math.sqrt(field.areas[0.95])


def visible_side(field: EffectiveReceptiveField) -> float:
    """Side of the square as large as the theoretical window inside the image."""
    reach = (field.theoretical.size - 1) / 2
    sides = [
        min(centre + reach, pixels - 1) - max(centre - reach, 0) + 1
        for centre, pixels in zip(field.centre, field.map.shape, strict=True)
    ]
    return math.sqrt(sides[0] * sides[1])


def _size_in_words(layer: str, field: EffectiveReceptiveField, ratio: float) -> str:
    clipped = f", {visible_side(field):.0f} px of it inside the image" if field.clipped else ""
    return (
        f"{layer}: 95 % of the mass in {_side(field):.0f} px{_mm(field, _side(field))}, theoretical "
        f"{field.theoretical.size:g} px{clipped}, ratio {ratio:.2f}"
    )


def _cell_in_words(field: EffectiveReceptiveField) -> str:
    jump = field.theoretical.jump
    words = f"Not measured here. One layer4 cell is {jump:g} px{_mm(field, jump)}"
    if field.spacing_mm is None:
        return f"{words}."
    return f"{words}; a nodule of {NODULE_MM:g} mm is {NODULE_MM / math.prod(field.spacing_mm) ** 0.5:.1f} px wide."


def _mm(field: EffectiveReceptiveField, length: float) -> str:
    known = field.in_mm(length)
    return "" if known is None else f" ({known:.0f} mm)"


def _drawn(layer: str, fields: Mapping[str, EffectiveReceptiveField]) -> LayerFields:
    field = fields["trained"]
    title = f"{layer}, theoretical {field.theoretical.size:g} px{_mm(field, field.theoretical.size)}"
    measured = {weights: _measured(each) for weights, each in fields.items()}
    return LayerFields(title, field.centre, field.theoretical.size, measured)


def _measured(field: EffectiveReceptiveField) -> MeasuredField:
    elongation = math.sqrt(field.sigma_axes[0] / field.sigma_axes[1])
    radii = {share: math.sqrt(area / math.pi) for share, area in field.areas.items()}
    profile = field.profiles[1]
    return MeasuredField(
        mass=field.mass,
        centroid=field.centroid,
        rings={share: (radius * elongation, radius / elongation) for share, radius in radii.items()},
        profile=profile,
        bell=_bell(profile, profile_fit(field)),
        caption=f"95 % in a square of {_side(field):.0f} px{_mm(field, _side(field))}",
    )


def _bell(profile: NDArray[np.float64], fit: GaussianFit) -> NDArray[np.float64]:
    """The fitted Gaussian along the columns, of the height that is nearest to the profile."""
    bell = np.exp(-0.5 * ((np.arange(len(profile)) - fit.centre[1]) / fit.sigma[1]) ** 2)
    return bell * (bell @ profile) / (bell @ bell)
