# SPDX-License-Identifier: Apache-2.0
"""The primer's sections on convolution and on pooling."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from monai_cnnprimer.explain.kernels import (
    first_convolution,
    grey_kernels,
    layer_output,
    shift_errors,
    touched_units,
    weight_counts,
)
from monai_cnnprimer.explain.pooling import pooled_line
from monai_cnnprimer.explain.receptive_field import ReceptiveField, theoretical_receptive_field
from monai_cnnprimer.figures.kernels import (
    pooling_png,
    touched_png,
    translation_png,
)
from monai_cnnprimer.report import primer_verdicts as verdicts
from monai_cnnprimer.report.primer_page import Result, Section, Shown
from monai_cnnprimer.report.primer_subject import Study

DEPTHS = ("conv1", "layer1", "layer2", "layer3", "layer4")
SHIFTS = {"conv1": 8, "layer1": 8, "layer2": 16}  # largest shift in pixels, two strides or more
ANSWER_SHIFTS = 16
FALSE_ALARMS = 0.05
CONTRASTS = tuple(2.0 ** (exponent / 2) for exponent in range(-4, 9))
SPOT_CONTRAST, SPOT_WINDOWS = 2.0, (4, 8, 16, 32)


def convolution_section(study: Study) -> Section:
    """Locality, shared weights, shifts."""
    model, image = study.model, study.picture.image
    row, column = (side // 2 for side in image.shape[2:])
    touched = {
        name: touched_units(layer_output(model.network, model.layer(name)), image, row, column) for name in DEPTHS
    }
    share = {name: units.mean() for name, units in touched.items()}
    counts = weight_counts(model.network)
    errors, answers = _shifts(study)
    strided = errors["layer1"].set_index("shift")["error"]
    jump = _field(study, "layer1").jump
    swing = np.ptp(answers["log_odds"])
    results = [
        Result(
            "local",
            f"One pixel changes {touched['conv1'].sum()} of {touched['conv1'].size} units of conv1 "
            f"({100 * share['conv1']:.2f} %). Reaches add up with depth: of layer4 it changes "
            f"{100 * share['layer4']:.0f} %.",
            verdicts.judge_local(float(share["conv1"])),
        ),
        Result(
            "dense",
            f"224 · 224 · 1,024 = {counts.dense / 1e6:.1f} M weights; conv1 has {counts.first_layer:,}, the whole "
            f"network {counts.network / 1e6:.1f} M.",
            verdicts.judge_dense(counts.dense, counts.first_layer),
        ),
        Result(
            "shift",
            f"Without stride the largest error is {errors['conv1, stride 1']['error'].max():.1g} of the map. With "
            f"stride only whole strides are exact: layer1 (stride {jump:g}) errs by {strided[jump]:.1g} at {jump:g} "
            f"px and by {100 * strided[jump // 2]:.0f} % at {jump // 2:g} px. The log odds move over {swing:.2f} "
            f"within {ANSWER_SHIFTS} px.",
            verdicts.judge_shift(list(errors.values())),
        ),
    ]
    figures = [
        Shown(
            touched_png(touched, "Units that change when one pixel does"),
            f"Pixel ({row}, {column}) of the network's input raised by 1; units whose value changes in any channel by "
            "more than 1e-5 of the largest change. Weights of the bundle.",
        ),
        Shown(
            translation_png(errors, {"the picture of this page": answers}, "Does it shift with its input?"),
            "Left: difference of the map of a shifted window from the shifted map, Euclidean norm, read linearly "
            "between units; only units whose theoretical field lies inside the window. Right: log odds of the "
            "finding while the picture moves to the right, its left border repeated.",
        ),
    ]
    method = (
        "Locality is measured by changing one pixel and counting the units that answer. For shifts a window slides "
        "over the picture, so that nothing is padded or rolled. layer3 and layer4 see more than the window; for them "
        "no unit is free of borders, so the network's answer stands in their place.",
    )
    references = (
        "Azulay and Weiss, 2019, JMLR 20(184), on shifts and subsampling",
        "Zhang, 2019, ICML, arXiv:1904.11486, on shift-equivariance of internal maps",
    )
    return Section("Convolution", method, results, figures, references)


def pooling_section(study: Study) -> Section:
    """Lines and spots under max and average pooling."""
    lines = pooled_line(CONTRASTS, false_alarms=FALSE_ALARMS, seed=study.seed)
    spots = pd.concat(
        pooled_line([SPOT_CONTRAST], length=2, window=side, windows=4000, false_alarms=FALSE_ALARMS, seed=study.seed)
        for side in SPOT_WINDOWS
    )
    kept = lines.pivot(index="contrast", columns="pooling", values="kept")
    found = lines.pivot(index="contrast", columns="pooling", values="detected")
    spot = spots.pivot(index="window", columns="pooling", values="detected")
    low, high, last = CONTRASTS[0], CONTRASTS[-1], SPOT_WINDOWS[-1]
    results = [
        Result(
            "peaks",
            f"Of a line of {high:g} noise SD max pooling leaves {100 * kept['max'][high]:.0f} %, of one of {low:g} SD "
            f"{100 * kept['max'][low]:.0f} %; average pooling always leaves {100 * kept['average'].mean():.0f} %. In "
            f"noise the average still finds more: at 1 SD {100 * found['average'][1.0]:.0f} % against "
            f"{100 * found['max'][1.0]:.0f} %.",
            verdicts.judge_peaks(lines),
        ),
        Result(
            "vanish",
            f"In 4 × 4 a line of 1 SD, found {100 * found['none'][1.0]:.0f} % of the time before pooling, is found "
            f"{100 * found['max'][1.0]:.0f} % (max) and {100 * found['average'][1.0]:.0f} % (average) after it. A "
            f"spot of 2 × 2 px and {SPOT_CONTRAST:g} SD, found {100 * spot['none'][last]:.0f} % before, is found "
            f"{100 * spot['max'][4]:.0f} % and {100 * spot['average'][4]:.0f} % in 4 × 4, "
            f"{100 * spot['max'][last]:.0f} % and {100 * spot['average'][last]:.0f} % in {last} × {last}.",
            verdicts.judge_vanish([lines, spots]),
        ),
    ]
    title = "A line of 2 px in windows of 4 × 4 px; a spot of 2 × 2 px in ever larger windows"
    figures = [
        Shown(
            pooling_png(lines, spots, FALSE_ALARMS, title),
            "White Gaussian noise of SD 1; 40,000 windows with the line and as many without, 4,000 for spots. Found: "
            f"above the value that {100 * FALSE_ALARMS:.0f} % of empty windows exceed (dotted). Before pooling: the "
            "mean over the line's own pixels.",
        )
    ]
    method = (
        "A thin line (a septal line, a pleural edge) crosses windows of 4 × 4 px in noise; contrast is in multiples "
        "of the noise's standard deviation. What counts is not only how high the pooled value stands, but whether it "
        "can be told from a window without a line. A spot shows the windows that a network's repeated pooling adds "
        "up to: ResNet-50 ends at 32 × 32 px. Learnt weights before each pooling can do better than this; they are "
        "not part of the claim.",
    )
    return Section("Pooling", method, results, figures)


def _field(study: Study, name: str) -> ReceptiveField:
    return theoretical_receptive_field(study.model.network, study.model.layer(name), study.picture.image)


def _shifts(study: Study) -> tuple[dict[str, pd.DataFrame], pd.DataFrame]:
    """Errors of early layers, conv1 also without its stride; and the answer over shifts."""
    model, image = study.model, study.picture.image
    conv = first_convolution(model.network)
    kernels = torch.from_numpy(grey_kernels(model.network))[:, None]
    padding = kernels.shape[-1] // 2

    def without_stride(x: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(x, kernels, padding=padding)

    single = ReceptiveField(kernels.shape[-1], 1, 0)
    errors = {"conv1, stride 1": shift_errors(without_stride, image, range(SHIFTS["conv1"] + 1), single)}
    for name, most in SHIFTS.items():
        label = f"{name}, stride {conv.stride[0]}" if name == "conv1" else name
        features = layer_output(model.network, model.layer(name))
        errors[label] = shift_errors(features, image, range(most + 1), _field(study, name))
    shifts, width = range(ANSWER_SHIFTS + 1), image.shape[-1]
    wide = torch.nn.functional.pad(image, (ANSWER_SHIFTS, 0, 0, 0), "replicate")
    windows = torch.cat([wide[..., ANSWER_SHIFTS - shift :][..., :width] for shift in shifts])
    return errors, pd.DataFrame({"shift": list(shifts), "log_odds": model.log_odds(windows)})
