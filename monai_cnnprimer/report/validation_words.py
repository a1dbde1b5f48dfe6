# SPDX-License-Identifier: Apache-2.0
"""What a report says in words, each sentence by a rule that was set before any result was seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from monai_cnnprimer.report.validation_numbers import Figure, count, decimal, listed, percent, with_interval
from monai_cnnprimer.report.validation_sites import Site

MARGIN = 0.05
MIN_OF_EACH = 20
RULE = (
    "An AUROC is better than chance when its 95 % interval lies above 0.5. The model holds at a site when the 95 % "
    f"interval of the loss of AUROC against the internal site lies below {MARGIN:.2f}; it does not hold when that "
    f"interval lies above {MARGIN:.2f}; otherwise these cases cannot decide. With fewer than {MIN_OF_EACH} labelled "
    "cases with the finding, or without it, nothing is judged. The verdicts are not adjusted for the number of sites."
)
Judgement = Literal[
    "internal", "holds", "does not hold", "undecided", "better than chance", "worse than chance",
    "not told from chance", "too few cases", "cannot be judged", "not finished",
]  # fmt: skip


class Verdict(NamedTuple):
    """What is said of a site, and its loss of AUROC against the internal one, if that can be given."""

    judgement: Judgement
    loss: Figure


def loss_of_auroc(internal: Figure, external: Figure) -> Figure:
    """AUROC of one group of cases minus that of another, other one, with its interval.

    The interval is built from the two intervals (Zou and Donner, Statist. Med. 2008; 27:1693-1702, equation 4).

    Example:
        >>> inside = {"value": 0.95, "low": 0.94, "high": 0.96, "n": 300}
        >>> with_interval(loss_of_auroc(inside, {"value": 0.54, "low": 0.5, "high": 0.58, "n": 400}))
        '0.41 (0.37 to 0.45)'
    """
    known = (figure.get(name) is not None for figure in (internal, external) for name in ("value", "low", "high"))
    if not all(known):
        return {}
    loss = internal["value"] - external["value"]
    low = loss - math.hypot(internal["value"] - internal["low"], external["high"] - external["value"])
    high = loss + math.hypot(internal["high"] - internal["value"], external["value"] - external["low"])
    return {"value": loss, "low": low, "high": high, "n": external["n"]}


def judge(site: Site, internal: Site | None) -> Verdict:
    """The verdict on a site, by `RULE`."""
    auroc = site.figure("auroc")
    if not site.run.complete:
        return Verdict("not finished", {})
    if site is internal:
        return Verdict("internal", {})
    if auroc.get("value") is None:
        return Verdict("cannot be judged", {})
    if not _enough(site):
        return Verdict("too few cases", {})
    if internal is None or not _enough(internal):
        return Verdict(_against_chance(auroc), {})
    loss = loss_of_auroc(internal.figure("auroc"), auroc)
    if not loss:
        return Verdict("cannot be judged", {})
    holds: Judgement = "holds" if loss["high"] < MARGIN else "does not hold" if loss["low"] > MARGIN else "undecided"
    return Verdict(holds, loss)


def summary_sentences(sites: Sequence[Site], internal: Site | None) -> list[str]:
    """The report in a few sentences, for the first screen."""
    complete = [site for site in sites if site.run.complete]
    verdicts = {site.name: judge(site, internal) for site in sites}
    return [
        sentence
        for sentence in (
            _tested(complete),
            _range_of_auroc(complete),
            *_verdict_sentences(verdicts, internal),
            _operating_point(complete),
            _metadata(complete),
            _unfinished(sites),
        )
        if sentence
    ]


def _enough(site: Site) -> bool:
    return min(site.positives, len(site.labelled) - site.positives) >= MIN_OF_EACH


def _against_chance(auroc: Figure) -> Judgement:
    if auroc["low"] is None:
        return "cannot be judged"
    return (
        "better than chance"
        if auroc["low"] > 0.5
        else "worse than chance"
        if auroc["high"] < 0.5
        else ("not told from chance")
    )


def _tested(sites: Sequence[Site]) -> str:
    images, labelled = sum(len(site.run.predictions) for site in sites), sum(len(site.labelled) for site in sites)
    patients, positives = sum(site.patients for site in sites), sum(site.positives for site in sites)
    run = sites[0].run.run
    start = f"{run['bundle']} {run['bundle_version']} was tested at {count(len(sites), 'site')}"
    if not labelled:
        return f"{start}: {count(images, 'image')} of {count(patients, 'patient')}, none with a label."
    said = "all with a label" if labelled == images else f"{labelled:,} with a label"
    return f"{start}: {count(images, 'image')} of {count(patients, 'patient')}, {said}, {positives:,} with the finding."


def _range_of_auroc(sites: Sequence[Site]) -> str:
    known = [(site.figure("auroc")["value"], site) for site in sites if site.figure("auroc").get("value") is not None]
    if not known:
        return "No site can give an AUROC: that needs labelled cases with the finding and without it."
    lowest, highest = min(known, key=lambda pair: pair[0])[1], max(known, key=lambda pair: pair[0])[1]
    if lowest is highest:
        return f"AUROC is {_auroc_in_words(lowest)}."
    return f"AUROC is {_auroc_in_words(lowest)} at the lowest and {_auroc_in_words(highest)} at the highest."


def _auroc_in_words(site: Site) -> str:
    auroc = site.figure("auroc")
    return f"{with_interval(auroc).replace('(', '(95 % interval ')[:-1]}, n {auroc['n']}; {site.name})"


def _verdict_sentences(verdicts: dict[str, Verdict], internal: Site | None) -> list[str]:
    said: dict[Judgement, str] = {
        "does not hold": "The model does not hold at {}.",
        "holds": "The model holds at {}.",
        "undecided": "These cases cannot decide whether it holds at {}.",
        "better than chance": "It ranks cases better than chance at {}.",
        "worse than chance": "It ranks cases worse than chance at {}.",
        "not told from chance": "Its ranking cannot be told from chance at {}.",
        "too few cases": f"Too few cases for a verdict (fewer than {MIN_OF_EACH} with or without the finding): {{}}.",
    }
    sentences = []
    for judgement, sentence in said.items():
        names = [
            _with_loss(name, verdict, internal) for name, verdict in verdicts.items() if verdict.judgement == judgement
        ]
        if names:
            sentences.append(sentence.format(listed(names)))
    if internal is None and len(verdicts) > 1:
        sentences.append("No site is named as internal, so it is not judged whether the model holds outside.")
    elif internal is not None and not _enough(internal):
        sentences.append(f"The internal site {internal.name} has too few labelled cases to compare with.")
    return sentences


def _with_loss(name: str, verdict: Verdict, internal: Site | None) -> str:
    if not verdict.loss or internal is None:
        return name
    loss = [decimal(verdict.loss[key]) for key in ("value", "low", "high")]
    return f"{name} (loss of AUROC against {internal.name} {loss[0]}, 95 % interval {loss[1]} to {loss[2]})"


def _operating_point(sites: Sequence[Site]) -> str:
    locked = [site for site in sites if not site.run.retuned]
    parts = []
    for name in ("sensitivity", "specificity"):
        known = sorted(
            (figure["value"], figure["n"]) for site in locked if (figure := site.figure(name)).get("value") is not None
        )
        if known:
            (low, few), (high, many) = known[0], known[-1]
            ends = [percent(low, few), percent(high, many)]
            parts.append(f"{name} {ends[0] if len(known) == 1 else ' to '.join(ends)} %")
    sentence = f"At the locked threshold: {listed(parts)}." if parts else ""
    retuned = [site.name for site in sites if site.run.retuned]
    if retuned:
        sentence += (
            f" At {listed(retuned)} the threshold was re-tuned on the site's own labels, which flatters the model (*)."
        )
    return sentence.strip()


def _metadata(sites: Sequence[Site]) -> str:
    """Names the sites where the header alone does at least as well as the image."""
    found = []
    for site in sites:
        alone, auroc = site.figure("baselines.metadata"), site.figure("auroc")
        known = alone.get("value") is not None and auroc.get("low") is not None
        if known and alone["low"] is not None and alone["low"] > 0.5 and alone["value"] >= auroc["low"]:
            found.append(f"{site.name} (AUROC {decimal(alone['value'])} without the image)")
    return f"Size, spacing and header alone do as well as the image at {listed(found)}." if found else ""


def _unfinished(sites: Sequence[Site]) -> str:
    told = [f"{site.name} ({site.run.run['status']})" for site in sites if not site.run.complete]
    return f"Not finished and therefore without figures: {listed(told)}." if told else ""
