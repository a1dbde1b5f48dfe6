# SPDX-License-Identifier: Apache-2.0
"""The primer, measured: every figure on one image, one page, and a verdict on each claim."""

from __future__ import annotations

import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from monai_cnnprimer.networks import load_pretrained, sha256_of_file
from monai_cnnprimer.report.primer_convolution import convolution_section, pooling_section
from monai_cnnprimer.report.primer_fields import field_section
from monai_cnnprimer.report.primer_kernels import kernel_section
from monai_cnnprimer.report.primer_network import gradcam_section, layer_section, shortcut_section
from monai_cnnprimer.report.primer_page import Section, page_html, verdict_table, verdicts_markdown
from monai_cnnprimer.report.primer_subject import Study, load_model, phantom_patients, phantom_picture, read_picture
from monai_cnnprimer.run_directory import write_atomically
from monai_cnnprimer.validate.sites import find_bundle

PACKAGES = ("monai_cnnprimer", "monai", "torch", "numpy", "scipy", "matplotlib")
PATIENTS = 12
SECTIONS: dict[str, Callable[[Study], Section]] = {
    "convolution": convolution_section,
    "kernels": kernel_section,
    "layers": layer_section,
    "pooling": pooling_section,
    "receptive fields": field_section,
    "Grad-CAM": gradcam_section,
    "shortcuts": shortcut_section,
}


def write_primer(
    output: str | Path,
    image: str | Path | None = None,
    bundle: str | Path = "chest_xray_resnet50",
    pretrained: str | Path | None = None,
    seed: int = 0,
    console: Console | None = None,
) -> Path:
    """Measures the primer's claims on one image and writes `primer.html`, `verdicts.csv` and `verdicts.md`.

    The page is one file without scripts. The same arguments give the same bytes on the same machine with the same
    number of threads. Neither the name of the image's file nor anything of its header but the spacing of its pixels and
    the encoding is written; what is burned into the image is shown.

    Args:
        output: folder; made if missing.
        image: a radiograph of any format that `RadiographReader` reads; None for a phantom.
        bundle: name or folder of the bundle whose network and preprocessing are used.
        pretrained: a weights file that the bundle's training started from, to compare its kernels with the bundle's.
        seed: of phantoms, noise and random weights.
        console: where the progress is shown; None shows none.

    Returns:
        The path of `primer.html`.

    Raises:
        FileNotFoundError: there is no such bundle, image or weights file.
        DicomRefused: the image cannot be read rightly.
        WeightsError: weights do not belong to the bundle's network.
    """
    model = load_model(find_bundle(bundle))
    if pretrained is not None:
        load_pretrained(model.new_network(), pretrained)  # fails now rather than half a minute later
    with Progress(console=console, disable=console is None, transient=True) as progress:
        task = progress.add_task("phantoms", total=PATIENTS + 4 * len(SECTIONS))
        picture = phantom_picture(model, seed) if image is None else read_picture(model, Path(image))
        patients = []
        for patient in phantom_patients(model, PATIENTS, seed):
            patients.append(patient)
            progress.advance(task)
        study = Study(model, picture, patients, seed, None if pretrained is None else Path(pretrained))
        sections = []
        for name, section in SECTIONS.items():
            progress.update(task, description=name)
            sections.append(section(study))
            progress.advance(task, 4)
    setting = describe_setting(study)
    folder = Path(output).expanduser()
    write_atomically(folder / "verdicts.csv", verdict_table(sections).to_csv(index=False, lineterminator="\n"))
    write_atomically(folder / "verdicts.md", verdicts_markdown(sections, setting))
    write_atomically(folder / "primer.html", page_html(sections, setting))
    return folder / "primer.html"


def describe_setting(study: Study) -> dict[str, str]:
    """What the numbers depend on, name to value: image, bundle, weights, seed, threads, versions."""
    rows, columns = study.picture.image.shape[2:]
    spacing = study.picture.spacing_mm
    pixel = "unknown" if spacing is None else f"{spacing[0]:.2f} × {spacing[1]:.2f} mm on the patient"
    return {
        "image": study.picture.origin,
        "network's input": f"{rows} × {columns} px; one pixel: {pixel}",
        "bundle": f"{study.model.name} {study.model.version}",
        "weights, SHA-256": study.model.weights_sha256,
        **({} if study.pretrained is None else {"pretrained, SHA-256": sha256_of_file(study.pretrained)}),
        "paired phantoms": f"{len(study.patients)} patients: healthy, with a consolidation, with a marker",
        "seed": str(study.seed),
        "threads": str(torch.get_num_threads()),
        "versions": ", ".join(
            [*(f"{name} {version(name)}" for name in PACKAGES), f"Python {platform.python_version()}"]
        ),
    }
