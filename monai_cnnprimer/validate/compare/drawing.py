# SPDX-License-Identifier: Apache-2.0
"""Which pictures a comparison gets, and what stands in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monai_cnnprimer.dicom.masks import Regions
from monai_cnnprimer.figures.compare import Difference, Interval, agreement_png, forest_png, same_answer_png
from monai_cnnprimer.figures.pairs import Pair, pairs_png
from monai_cnnprimer.handlers.maps import file_name
from monai_cnnprimer.run_directory import write_atomically
from monai_cnnprimer.validate.compare.export import Export, PathLike
from monai_cnnprimer.validate.compare.maps import LayerMaps, SameAnswer
from monai_cnnprimer.validate.compare.pair import RunPair
from monai_cnnprimer.validate.compare.tables import ALL_CASES, outcomes

_HEADINGS = {"auroc": "AUROC", "sensitivity": "sensitivity", "specificity": "specificity", "accuracy": "accuracy"}
_MEASURES = {
    "pearson": "correlation of both maps",
    "other_cases": "the same with other cases' maps",
    "spearman": "rank correlation",
    "common_mass": "mass in common",
}
_MADE = {"edges": "edges as given", "quantiles": "quarters of the cases", "values": "one bin a value"}
_GROUPS = ("only A right", "only B right", "different calls")


def draw_figures(
    folder: Path,
    pair: RunPair,
    result: Mapping[str, Any],
    maps: tuple[LayerMaps | None, ...],
    found: SameAnswer | None,
    export: Export | None,
    bundle: PathLike | None,
    regions: Callable[[str], Regions] | None,
    images: int,
) -> dict[str, Any]:
    """Writes `figures/compare_*.png`: forest, agreement, same_answer, differing, discordant; none where none can be.

    Returns:
        For the last two, how many cases there are (`n`), are shown, and have no image.
    """
    brand = "".join(f"\n{text}" for text in pair.brand)

    def write(name: str, figure: bytes) -> None:
        write_atomically(folder / "figures" / f"compare_{name}.png", figure)

    groups = forest_groups(result)
    if groups:
        write("forest", forest_png(groups, pair.names, f"Differences on {_cases(result)}{brand}", forest_note(result)))
    write("agreement", _agreement(pair, result, brand))
    if found is not None and found.result["compared"]:
        write("same_answer", _same_answer(found, pair, brand))
    if images < 1:
        return {}
    source = _Pictures(pair, maps, export, bundle, regions)
    marks = [f"{mark}." for mark in (found.result["marks"] if found is not None else ())]
    note = " ".join([*marks, "Colour: what raised the score of the class named; each map on its own scale."])
    shown = {}
    differing = _differing(pair)
    chosen, shown["differing"] = source.choose(list(differing), images)
    if chosen:
        captions = {case_id: f"{differing[case_id]}" for case_id in chosen}
        title = f"Different calls: {len(chosen)} of {len(differing)}{brand}"
        write("differing", pairs_png(source.pairs(chosen, captions), pair.names, title, note))
    discordant = {} if found is None else _discordant(found)
    chosen, shown["discordant"] = source.choose(list(discordant), min(images, (len(discordant) + 1) // 2))
    if chosen:
        title = f"Both right, maps least alike: {len(chosen)} of {len(discordant)}{brand}"
        captions = {case_id: f"r = {discordant[case_id]:.2f}".replace("-", "−") for case_id in chosen}
        write("discordant", pairs_png(source.pairs(chosen, captions), pair.names, title, note))
    return shown


def forest_groups(result: Mapping[str, Any]) -> dict[str, list[Difference]]:
    """The lines of the forest plot, figure by figure; none where no case has a label."""
    if not result["metrics"]:
        return {}
    rows = (result["by"] or {"rows": []})["rows"]
    groups = {}
    for metric, heading in _HEADINGS.items():
        lines = [_line(ALL_CASES, result["cases"], result["metrics"][metric], metric, None)]
        few = result["by"]["few"] if rows else None
        lines += [_line(row["bin"], row, row[metric], metric, few) for row in rows if metric in row]
        groups[heading] = lines
    return groups


def forest_note(result: Mapping[str, Any]) -> str:
    """What a reader of the forest plot must know."""
    note = "p: DeLong (AUROC), exact McNemar (others), not clustered."
    if not result["by"]:
        return note
    by = result["by"]
    note += f" Bins: {by['column']}, {_MADE[by['made_of']]}; their p after Holm within each figure."
    if by["of_findings"]:
        note += " Cases with a finding of that size; AUROC against all without a finding."
    left = [f"{words} {by[key]}" for key, words in (("not_stated", "not stated"), ("outside", "outside")) if by[key]]
    return note + (f" In no bin: {', '.join(left)}." if left else "")


def _line(name: str, counts: Mapping[str, Any], figures: Mapping[str, Any], metric: str, few: int | None) -> Difference:
    cases = f"{counts['positives']}+{counts['negatives']}" if metric == "auroc" else str(figures["n"])
    difference = figures["difference"]
    p = difference.get("p_holm") if few is not None else difference["p"]
    remark = "cannot be told" if difference["value"] is None or metric == "auroc" else "no case differs"
    if figures["too_few"]:
        remark = f"too few (under {few})"
    return Difference(
        name, cases, figures["a"]["value"], figures["b"]["value"], _interval(difference), p_text(p), remark
    )


def p_text(p: float | None) -> str:
    """A p in words."""
    if p is None:
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _agreement(pair: RunPair, result: Mapping[str, Any], brand: str) -> bytes:
    of = result["agreement"]
    figures = {name: _interval(of[name]) for name in ("pearson", "kappa", "bias")}
    figures |= {name: _interval(of["limits"][name]) for name in ("lower", "upper")}
    logits = pair.table["logit_a"].to_numpy(dtype=float), pair.table["logit_b"].to_numpy(dtype=float)
    labels = pair.table["label"].astype("Float64").to_numpy(dtype=float, na_value=np.nan)
    title = f"Agreement of logits, {_cases(result)}{brand}"
    return agreement_png(logits, labels, pair.thresholds, figures, pair.names, title)


def _same_answer(found: SameAnswer, pair: RunPair, brand: str) -> bytes:
    result = found.result
    values = {words: found.cases[name].to_numpy() for name, words in _MEASURES.items()}
    means = {words: _interval(result[name]) for name, words in _MEASURES.items()}
    masses = {
        f"{region} (n = {of['a']['n']})": {model: _interval(of[model]) for model in "ab"}
        for region, of in result["regions"].items()
    }
    layers = f"A: {pair.names[0]}, {result['a']['layer']}; B: {pair.names[1]}, {result['b']['layer']}."
    left = [f"{result[key]} {words}" for key, words in _LEFT_OUT.items() if result[key]]
    note = " ".join([layers, *(f"{mark}." for mark in result["marks"]), *(f"{text}." for text in left)])
    title = f"Maps where both are right, {result['compared']} of {result['both_right']} cases{brand}"
    return same_answer_png(values, means, masses, title, note)


_LEFT_OUT = {
    "without_map": "cases have no map in both runs",
    "other_class": "cases' maps explain different classes",
    "without_evidence": "cases have a map of one value",
}


class _Pictures:
    """Images from either run directory, else from the export, under both models' maps."""

    def __init__(
        self,
        pair: RunPair,
        maps: tuple[LayerMaps | None, ...],
        export: Export | None,
        bundle: PathLike | None,
        regions: Callable[[str], Regions] | None,
    ) -> None:
        self.pair = pair
        self.maps = maps
        self.export = export
        self.bundle = bundle
        self.regions = regions
        self._rows = pair.table.set_index("case_id")
        self._transform: Any = None
        self._images: dict[str, NDArray[np.float32]] = {}

    def choose(self, case_ids: Sequence[str], most: int) -> tuple[list[str], dict[str, int]]:
        """The first cases that have an image; and how many there are, are shown, were passed over without one."""
        chosen: list[str] = []
        without = 0
        for case_id in case_ids:
            if len(chosen) == most:
                break
            image = self._image(case_id)
            if image is None:
                without += 1
            else:
                self._images[case_id] = image
                chosen.append(case_id)
        return chosen, {"n": len(case_ids), "shown": len(chosen), "without_image": without}

    def pairs(self, case_ids: Sequence[str], captions: Mapping[str, str]) -> list[Pair]:
        """The chosen cases as `pairs_png` draws them."""
        return [self._pair(case_id, captions[case_id]) for case_id in case_ids]

    def _pair(self, case_id: str, caption: str) -> Pair:
        row: Any = self._rows.loc[case_id]
        image = self._images[case_id]
        heats = [of.heat(case_id, image.shape) if of and case_id in of.stored.maps else None for of in self.maps]
        label = "unknown" if pd.isna(row["label"]) else str(int(row["label"]))
        calls = [
            f"{name}: {row[f'predicted_{name.lower()}']} (p = {row[f'probability_{name.lower()}']:.2f})"
            for name in "AB"
        ]
        head = f"{case_id[:16]}\nlabel {label}, {caption}"
        told = [f"{call}\n{self._explained(which, case_id)}" for which, call in enumerate(calls)]
        known = {} if self.regions is None else self.regions(case_id).masks
        masks = {name: mask for name, mask in known.items() if mask.shape == image.shape}
        return Pair(image, (heats[0], heats[1]), head, (told[0], told[1]), masks)

    def _explained(self, which: int, case_id: str) -> str:
        of = self.maps[which]
        explained = None if of is None else of.stored.explained.get(case_id)
        return "" if of is None else of.stored.layer + ("" if explained is None else f", map of class {explained}")

    def _image(self, case_id: str) -> NDArray[np.float32] | None:
        for run in (self.pair.a, self.pair.b):
            file = run.path / "maps" / f"{file_name(case_id)}.nii.gz"
            if file.is_file():
                return np.asarray(nib.nifti1.load(file).dataobj, dtype=np.float32)[:, 0].T
        known = next((of for of in self.maps if of is not None), None)
        if self.export is None or known is None:
            return None
        if self._transform is None:
            run = self.pair.a if known is self.maps[0] else self.pair.b
            self._transform = self.export.preprocessing(run, known.stored.image_size, self.bundle)
        return self.export.image(case_id, self._transform)


def _differing(pair: RunPair) -> dict[str, str]:
    """Case ids with who is right: in turns what only A and what only B gets right, the widest apart first."""
    table = pair.table.assign(outcome=outcomes(pair.table))
    table = table[table["predicted_a"] != table["predicted_b"]]
    beyond = [table[f"logit_{name}"] - threshold for name, threshold in zip("ab", pair.thresholds, strict=True)]
    apart = (beyond[1] - beyond[0]).abs()
    table = table.assign(apart=apart.round(3)).sort_values(["apart", "case_id"], ascending=[False, True])
    groups = [table[table["outcome"] == group] for group in _GROUPS]
    turns = chain.from_iterable(zip_longest(*(group["case_id"] for group in groups)))
    words = dict(zip(table["case_id"], table["outcome"], strict=True))
    return {case_id: words[case_id] for case_id in turns if case_id is not None}


def _discordant(found: SameAnswer) -> dict[str, float]:
    """Case ids with the correlation of their maps, the lowest first."""
    known = found.cases["pearson"].dropna()
    return {str(case_id): float(value) for case_id, value in known.sort_values(kind="stable").items()}


def _interval(figures: Mapping[str, Any]) -> Interval:
    return figures["value"], figures["low"], figures["high"]


def _cases(result: Mapping[str, Any]) -> str:
    cases = result["cases"]
    return f"{cases['n']} cases of {cases['patients']} patients"
