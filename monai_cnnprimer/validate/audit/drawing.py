# SPDX-License-Identifier: Apache-2.0
"""The figures of an audit: the effects as a forest, and of each intervention the cases that it moves furthest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_cnnprimer.atomic import write_atomically
from monai_cnnprimer.figures.gate import Interval, Moved, Strip, effects_png, strips_png
from monai_cnnprimer.validate.audit.measuring import Seen

_LABELS = {None: "label unknown", 0: "no finding", 1: "finding"}


def draw_figures(folder: Path, result: Mapping[str, Any], furthest: Mapping[str, Sequence[Seen]]) -> list[str]:
    """Writes `figures/gate_effects.png` and `figures/gate_NAME.png` of each intervention that was made.

    Returns:
        The names of the interventions that were drawn, those that fail first.
    """
    entries = result["interventions"]
    made = [name for name in entries if entries[name]["n"] and entries[name]["shift"]["value"] is not None]
    if made:
        lines = [_line(name, entries[name]) for name in made]
        unit = (
            "mean absolute change of the logit, in standard deviations of the logits (above control where so limited)"
        )
        title = f"Audit: {result['verdict']}, {result['counts']['audited']} cases"
        write_atomically(folder / "figures" / "gate_effects.png", effects_png(lines, title, unit))
    drawn = sorted((name for name in made if furthest.get(name)), key=lambda name: entries[name]["verdict"] != "fail")
    for name in drawn:
        title = f"{entries[name]['what']}: the cases that it moves furthest"
        strips = [_strip(seen, result["threshold_logit"]) for seen in furthest[name]]
        write_atomically(folder / "figures" / f"gate_{name}.png", strips_png(strips, title))
    return drawn


def _line(name: str, entry: Mapping[str, Any]) -> Moved:
    """What the limit holds for, with the gate's own interval; where there is no limit, the 95 % interval."""
    limit, judged = entry["limit"], entry["judged"]
    above = bool(limit and limit["above_control"])
    effect = judged["shift"] if judged else entry["shift_above_control" if above else "shift"]
    control = {"value": None, "low": None, "high": None} if above or not entry["control"] else entry["control"]["shift"]
    flips = entry["flips"]["value"]
    remark = f"n {entry['n']}, {100 * flips:.0f} % change side"
    return Moved(
        name, _interval(effect), _interval(control), limit["shift"] if limit else None, entry["verdict"], remark
    )


def _interval(figure: Mapping[str, float | None]) -> Interval:
    return figure["value"], figure["low"], figure["high"]


def _strip(seen: Seen, cut: float) -> Strip:
    names = ("before", "after", "control")
    captions = [
        f"{name}: {logit:+.2f}, {'called' if logit >= cut else 'not called'}".replace("-", "−")
        for name, logit in zip(names, seen.logits, strict=False)
    ]
    panels = list(zip(seen.images, captions, seen.where, strict=True))
    return Strip(f"{seen.case_id}, {_LABELS[seen.label]}", panels)
