# SPDX-License-Identifier: Apache-2.0
"""Of a report: its limits, those that any such report has and those that these runs add."""

from __future__ import annotations

from collections.abc import Sequence

from monai_cnnprimer.report.page import Points, Section
from monai_cnnprimer.report.validation_numbers import count, listed
from monai_cnnprimer.report.validation_sites import Site
from monai_cnnprimer.report.validation_words import MIN_OF_EACH


def limits_section(sites: Sequence[Site], internal: Site | None) -> Section:
    """Short sentences; those about these runs first."""
    return Section("limits", "Limits", [Points([*_of_these_runs(sites, internal), *_of_any()])])


def _of_any() -> list[str]:
    return [
        "The labels are taken as the sites gave them; this report cannot know how good they are.",
        "Refused files may differ from accepted ones; nothing is known of patients who were not exported.",
        "Intervals are for each figure alone. With many sites and figures some miss the truth; only the tests of "
        "subgroups are adjusted for their number.",
        "Predictive values and net benefit hold at the prevalence of these cases, not at that of another clinic.",
        "Grad-CAM and baselines point to a cause; they do not prove one. That takes an intervention on the image.",
        "Nothing here says what the model would do to patients. Research use only, not for clinical use.",
    ]


def _of_these_runs(sites: Sequence[Site], internal: Site | None) -> list[str]:
    complete = [site for site in sites if site.run.complete]
    found = {
        "Not finished: {}; what they would have shown is missing here.": [s.name for s in sites if not s.run.complete],
        "The threshold was re-tuned on the labels it is judged by: {}.": [s.name for s in complete if s.run.retuned],
        "Without any label: {}; only what was called positive can be given.": [
            s.name for s in complete if not len(s.labelled)
        ],
        "Labelled cases of one kind only: {}; no AUROC, no curves.": [
            s.name for s in complete if len(s.labelled) and not s.has_both_classes
        ],
        f"Fewer than {MIN_OF_EACH} labelled cases with or without the finding: {{}}; not judged.": [
            s.name for s in complete if s.has_both_classes and _fewest(s) < MIN_OF_EACH
        ],
        "Pixel spacing unknown for some images: {}.": [s.name for s in complete if _without_spacing(s)],
        "Several images of some patients: {}; intervals of the curves and of calibration count images, not patients.": [
            s.name for s in complete if s.patients < len(s.run.predictions)
        ],
    }
    sentences = [sentence.format(listed(names)) for sentence, names in found.items() if names]
    versions = {tuple(sorted(s.run.run.get("versions", {}).items())) for s in sites}
    if len(versions) > 1:
        sentences.append("The sites ran different versions of the software (see provenance).")
    if internal is None and len(sites) > 1:
        sentences.append("No site is named as internal; a loss against the place of training is not measured.")
    if len(complete) == 1:
        sentences.append(f"There is {count(1, 'site')}; nothing is said of any other.")
    return sentences


def _fewest(site: Site) -> int:
    return min(site.positives, len(site.labelled) - site.positives)


def _without_spacing(site: Site) -> int:
    spacing = site.run.predictions.get("spacing_source")
    return 0 if spacing is None else int((spacing == "unknown").sum())
