# SPDX-License-Identifier: Apache-2.0
"""All sites together: does the site alone tell the label, and do the network's features tell the site?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from monai_cnnprimer.handlers.features import NAMES
from monai_cnnprimer.validate.baselines import Baseline, SiteProbe, site_baseline, site_probe
from monai_cnnprimer.validate.features import pooled_features
from monai_cnnprimer.validate.runs import Run
from monai_cnnprimer.validate.statistics import Auroc, auroc


@dataclass(frozen=True)
class Pooled:
    """Figures of several sites' cases taken together.

    Attributes:
        model: AUROC of the model on all labelled cases; None with fewer than two labelled sites.
        site_alone: AUROC of the site's name alone on the same cases.
        probe: how well the network's features tell the sites apart; None where `probe_reason` says why.
        probe_reason: "" where there is a probe.
    """

    model: Auroc | None
    site_alone: Baseline | None
    probe: SiteProbe | None
    probe_reason: str

    def figures(self) -> dict[str, Any]:
        """As they stand in `validation.json`."""
        probe = None if self.probe is None else asdict(self.probe.balanced_accuracy) | {"chance": self.probe.chance}
        return {
            "auroc": None if self.model is None else asdict(self.model),
            "site_alone": None if self.site_alone is None else asdict(self.site_alone),
            "site_probe": probe or {"value": None, "reason": self.probe_reason},
        }


def pooled(runs: Sequence[Run], seed: int = 0) -> Pooled:
    """Pools complete runs, one a site; of one site nothing is known.

    Args:
        runs: complete runs.
        seed: of folds and intervals.

    Raises:
        RunError: see `features_of`.
    """
    labelled = [run for run in runs if run.predictions["label"].notna().any()]
    model, alone = _labels(labelled, seed) if len(labelled) > 1 else (None, None)
    probe, reason = _probe(runs, seed)
    return Pooled(model, alone, probe, reason)


def _labels(runs: Sequence[Run], seed: int) -> tuple[Auroc, Baseline]:
    cases = pd.concat([run.predictions.assign(site=run.site) for run in runs])
    cases = cases[cases["label"].notna()]
    label, site = cases["label"].to_numpy(dtype=np.int64), cases["site"].to_numpy()
    model = auroc(label, cases["logit"].to_numpy(dtype=np.float64))
    return model, site_baseline(label, site, (cases["site"] + cases["patient_key"]).to_numpy(), seed)


def _probe(runs: Sequence[Run], seed: int) -> tuple[SiteProbe | None, str]:
    cases = pooled_features(runs)
    without = [run.site for run in runs if run.site not in set(cases["site"])]
    if without or len(runs) < 2:
        return None, f"no features were kept at {', '.join(without)}" if without else "a single site"
    if cases["layer"].nunique() > 1:
        return None, "the sites kept features of different layers"
    cases = cases.loc[np.isfinite(cases[list(NAMES)].to_numpy()).all(axis=1)]
    try:
        return site_probe(cases[list(NAMES)], cases["site"], cases["person"], seed), ""
    except ValueError as error:  # too few patients at a site
        return None, str(error)
