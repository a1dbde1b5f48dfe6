# SPDX-License-Identifier: Apache-2.0
"""The primer's sections on layers, receptive fields, Grad-CAM and shortcuts."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from monai_cnnprimer.explain.activation_statistics import LayerStatistics
from monai_cnnprimer.explain.activations import Activations
from monai_cnnprimer.explain.gradcam import GradCam
from monai_cnnprimer.explain.kernels import layer_output
from monai_cnnprimer.explain.quality import map_quality, summarise_quality
from monai_cnnprimer.explain.randomisation import LIMIT, RandomisationCheck, cascading_randomisation
from monai_cnnprimer.explain.receptive_field import align_map, theoretical_receptive_field
from monai_cnnprimer.figures.activations import ChannelMaps, LayerDepth, channel_grid_png, depth_png
from monai_cnnprimer.figures.overlay import overlay_png
from monai_cnnprimer.figures.primer import paired_changes_png
from monai_cnnprimer.figures.quality import RandomisedCase, quality_png, randomisation_png
from monai_cnnprimer.report import primer_verdicts as verdicts
from monai_cnnprimer.report.primer_page import Result, Section, Shown
from monai_cnnprimer.report.primer_subject import Study

LAYERS = ("layer1", "layer3", "layer4")
DRAWS = 2  # of random weights


def layer_section(study: Study) -> Section:
    """Cells and sparsity by depth, and the most active channels."""
    network, names = study.model.network, _layers(study)
    grids = {short: _grid(study, name) for short, name in names.items()}
    images = torch.cat([study.images("healthy"), study.images("finding")])
    with torch.no_grad(), Activations(network, list(names.values()), max_images=0, all_images=True) as seen:
        for part in images.split(8):
            network(part)
    statistics = {short: seen.statistics[name] for short, name in names.items()}
    first, last = statistics["layer1"], statistics["layer4"]
    sparse = (first.sparseness.mean, last.sparseness.mean)
    alike = (first.autocorrelation.mean, last.autocorrelation.mean)
    results = [
        Result(
            "grids",
            "; ".join(f"{short} {rows} × {columns}" for short, (rows, columns) in grids.items())
            + f". At the bundle's own {study.picture.image.shape[-1]} px: "
            + "; ".join(
                f"{short} {layer.grid[0]} × {layer.grid[1]}" for short, layer in statistics.items() if layer.grid
            )
            + ".",
            verdicts.judge_grids(grids),
        ),
        Result(
            "sparse",
            f"Sparseness (Treves-Rolls) {sparse[0]:.2f} in layer1 and {sparse[1]:.2f} in layer4, units at zero "
            f"{100 * first.zero_share.mean:.0f} % and {100 * last.zero_share.mean:.0f} %; likeness of neighbouring "
            f"cells (Moran's I) {alike[0]:.2f} and {alike[1]:.2f}; {len(images)} phantoms.",
            verdicts.judge_sparse(sparse, alike),
        ),
    ]
    figures = [
        Shown(
            _most_active(study, names),
            "The 16 channels of highest mean activation of each layer on the picture of this page. Each cell is one "
            "unit; nothing is smoothed.",
        ),
        Shown(
            depth_png(
                [_depth(short, layer) for short, layer in statistics.items()], f"By depth, {len(images)} phantoms"
            ),
            f"Mean and standard deviation over {len(images)} phantoms, half with a consolidation.",
        ),
    ]
    method = (
        "Cells are counted in the network's own maps of a 224 px image. Sparseness is 0 when all units of a layer "
        "answer alike and 1 when a single one answers; it does not depend on scale.",
    )
    references = (
        "Treves and Rolls, 1991, Network 2:371, and Vinje and Gallant, 2000, Science 287:1273, on sparseness",
        "Moran, 1950, Biometrika 37:17, on likeness of neighbours",
    )
    return Section("Layers", method, results, figures, references)


def gradcam_section(study: Study) -> Section:
    """Maps of the picture, where their mass lies, and whether they depend on the weights."""
    names = _layers(study)
    images, target = study.images("finding"), _finding_class(study)
    checks = cascading_randomisation(study.model.network, names["layer4"], images, target, study.seed, DRAWS)
    check = checks[names["layer4"]]
    quality = [
        map_quality(heat, dict(patient.masks))
        for heat, patient in zip(_aligned(study, images, names["layer4"]), study.patients, strict=True)
    ]
    summary = summarise_quality(quality)
    lung, finding = summary["outside_lung_mass_per_area"], summary["finding_mass_per_area"]
    results = [
        Result(
            "gradcam",
            f"{check.reason[0].upper()}{check.reason[1:]}; {check.n} phantoms, {DRAWS} draws. Mass per area outside "
            f"the lungs {lung.mean:.2f} ({lung.low:.2f} to {lung.high:.2f}), in the finding {finding.mean:.2f} "
            f"({finding.low:.2f} to {finding.high:.2f}); 1 is a map without preference.",
            verdicts.judge_gradcam(check.fit),
        )
    ]
    heats = {f"{short}, raw": _aligned(study, study.picture.image, name)[0] for short, name in names.items()}
    figures = [
        Shown(
            overlay_png(study.picture.pixels, heats, "Grad-CAM for the finding, aligned by receptive field"),
            "What raised the score of the finding, on the picture of this page.",
        ),
        Shown(
            _cascade(study, check),
            "layer4 maps of a phantom while the weights are made random from the head downwards, and the rank "
            f"correlation with the trained map over {check.n} phantoms and {DRAWS} draws of weights.",
        ),
        Shown(
            quality_png(quality, summary, f"Where the mass of layer4 maps lies, {len(quality)} phantoms"),
            "Share of the mass by share of the area; the phantoms have a consolidation of known outline.",
        ),
    ]
    method = (
        "A map that random weights leave as it was shows the picture, not what was learnt. Where its mass lies is "
        "told as mass by area, since a large region holds much of any map.",
    )
    references = (
        "Selvaraju et al., 2017, ICCV, arXiv:1610.02391, Grad-CAM",
        "Adebayo et al., 2018, NeurIPS, arXiv:1810.03292, randomised weights",
    )
    return Section("Grad-CAM", method, results, figures, references)


def shortcut_section(study: Study) -> Section:
    """The paired change of the log odds by a marker, beside that by a finding."""
    healthy = study.model.log_odds(study.images("healthy"))
    changes = {
        "consolidation added": study.model.log_odds(study.images("finding")) - healthy,
        "marker “R” added": study.model.log_odds(study.images("marked")) - healthy,
    }
    means = {name: (float(values.mean()), _interval(values)) for name, values in changes.items()}
    (finding, found), (marker, marked) = means.values()
    results = [
        Result(
            "shortcut",
            f"A marker “R” changes the log odds by {marker:+.3f} (95 % interval {marked[0]:+.3f} to "
            f"{marked[1]:+.3f}), a consolidation by {finding:+.3f} ({found[0]:+.3f} to {found[1]:+.3f}); "
            f"{len(healthy)} phantoms, paired.",
            verdicts.judge_shortcut(marker, marked, finding, found),
        )
    ]
    figures = [
        Shown(
            paired_changes_png(changes, means, "Added to the same phantom"),
            f"Each dot is one of {len(healthy)} phantoms: log odds with the marker, or the consolidation, minus log "
            "odds without; bars: mean and its 95 % interval (Student's t).",
        )
    ]
    method = (
        "The same phantom with and without a marker: nothing else differs, so what the answer does is the marker's "
        "doing. This is one shortcut on synthetic images; tubes, exposure, borders and a gate on them are a later "
        "experiment.",
    )
    references = (
        "Zech et al., 2018, PLoS Med 15:e1002683, and DeGrave et al., 2021, Nat Mach Intell 3:610, on shortcuts",
    )
    return Section("Shortcuts", method, results, figures, references)


def _layers(study: Study) -> dict[str, str]:
    return {short: study.model.layer(short) for short in LAYERS}


@torch.no_grad()
def _grid(study: Study, name: str) -> tuple[int, int]:
    rows, columns = layer_output(study.model.network, name)(torch.zeros(1, 1, 224, 224)).shape[2:]
    return rows, columns


def _most_active(study: Study, names: Mapping[str, str]) -> bytes:
    with torch.no_grad(), Activations(study.model.network, list(names.values()), max_images=1) as seen:
        study.model.network(study.picture.image)
    layers = seen.images[0].layers
    shown = [
        ChannelMaps(short, layers[name].channels.tolist(), layers[name].maps.numpy()) for short, name in names.items()
    ]
    return channel_grid_png(study.picture.pixels, shown, "The 16 most active channels")


def _depth(short: str, layer: LayerStatistics) -> LayerDepth:
    return LayerDepth(
        short,
        layer.zero_share,
        layer.sparseness,
        layer.autocorrelation,
        layer.dead_share,
        layer.channel_mean.numpy(),
    )


def _finding_class(study: Study) -> int:
    """The last logit: of two that of the finding, of one the only one."""
    with torch.no_grad():
        return study.model.network(study.picture.image).shape[1] - 1


def _aligned(study: Study, images: Tensor, layer: str) -> NDArray[np.float32]:
    """Grad-CAM of the finding `(N, H, W)` at the network's input."""
    field = theoretical_receptive_field(study.model.network, layer, images[:1])
    with torch.no_grad(), GradCam(study.model.network, layer, _finding_class(study)) as cam:
        parts = []
        for part in images.split(8):
            study.model.network(part)
            parts.append(cam.maps[layer])
    return align_map(torch.cat(parts), images.shape[2:], field)[:, 0].numpy()


def _cascade(study: Study, check: RandomisationCheck) -> bytes:
    image = study.images("finding")[check.images[:1]]
    field = theoretical_receptive_field(study.model.network, check.layer, image)
    maps = torch.from_numpy(check.maps[:, :1])
    heats = [align_map(one[None], image.shape[2:], field)[0, 0].numpy() for one in maps]
    case = RandomisedCase(image[0, 0].numpy(), heats, check.signed[0, :, 0].tolist())
    title = "Does the map depend on the weights?"
    return randomisation_png(case, check.rows(), title, check.fit, check.reason, LIMIT)


def _interval(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
    return float(low), float(high)
