# SPDX-License-Identifier: Apache-2.0
"""The report from run directories: what it says, by which rule, of which runs, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser

import pandas as pd
import pytest
from report_runs import write_run
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from monai_cnnprimer.commands.report import app
from monai_cnnprimer.report.page import Cell, Section, Table, Words, page_html
from monai_cnnprimer.report.validation import write_report
from monai_cnnprimer.report.validation_numbers import figure_of, share_with_interval, why_missing
from monai_cnnprimer.report.validation_sites import read_sites
from monai_cnnprimer.report.validation_words import judge, loss_of_auroc, summary_sentences
from monai_cnnprimer.run_directory import write_run_json
from monai_cnnprimer.validate.runs import RunError


class Seen(HTMLParser):
    """Tags, ids, links, tables and texts of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.links, self.images, self.text, self.open = [], [], [], [], [], []
        self.feed(text)
        self.text = " ".join(" ".join(self.text).split())

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self.tags.append(tag)
        self.open.append(tag)
        self.ids += [named["id"]] if "id" in named else []
        self.links += [named["href"]] if tag == "a" else []
        self.images += [named] if tag == "img" else []

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data.replace("\N{NO-BREAK SPACE}", " "))

    def handle_endtag(self, tag):
        self.open.append("")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A home site, one where the model fails, one re-tuned, one unlabelled, one of one class, one that was killed."""
    root = tmp_path_factory.mktemp("runs")
    write_run(root / "home", n=200, signal=2.6, maps=8)
    write_run(root / "away", n=160, signal=0.1, maps=6)
    write_run(root / "tuned", n=60, signal=2.2, retuned=True, seed=1)
    write_run(root / "unlabelled", n=20, labelled=0)
    write_run(root / "healthy", n=20, positive=0)
    write_run(root / "killed", status="killed")
    return root


NAMES = ("home", "away", "tuned", "unlabelled", "healthy", "killed")


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    output = tmp_path_factory.mktemp("report") / "report.html"
    write_report([runs / name for name in NAMES], output, internal="home")
    return output.read_text(encoding="utf-8")


def test_same_runs_give_the_same_bytes(runs, page, tmp_path):
    write_report([runs / name for name in NAMES], tmp_path / "again.html", internal="home")
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == page


def test_page_needs_no_other_file_and_its_policy_allows_none(page):
    assert "default-src 'none'" in page
    assert set(re.findall(r'(?:src|href)="([a-z]+):', page)) == {"data"}
    assert "url(http" not in page
    assert "@import" not in page


def test_links_lead_to_places_of_the_page_and_no_id_is_there_twice(page):
    seen = Seen(page)
    assert len(seen.ids) == len(set(seen.ids))
    assert {link.removeprefix("#") for link in seen.links} <= set(seen.ids)
    assert len(seen.links) > 20


def test_each_image_has_a_text_and_each_table_a_caption(page):
    seen = Seen(page)
    assert len(seen.images) >= 12
    assert all(image["alt"] for image in seen.images)
    assert seen.tags.count("caption") == seen.tags.count("table") > 10


def test_banner_brand_and_every_site_stand_on_the_first_screen(page):
    first = Seen(page[: page.index("<nav")]).text
    assert "Research use only, not for clinical use." in first
    assert "Threshold re-tuned at tuned" in first
    assert all(name in first for name in NAMES)


def test_auroc_of_the_page_is_that_of_scikit_learn(runs, page):
    (site,) = read_sites([runs / "home"])
    labels, logits, _ = site.columns()
    assert f"{roc_auc_score(labels, logits):.2f} (" in Seen(page).text


def test_summary_judges_by_the_rule(runs):
    sites = {site.name: site for site in read_sites([runs / name for name in NAMES])}
    said = {name: judge(site, sites["home"]).judgement for name, site in sites.items()}
    assert said == {
        "home": "internal", "away": "does not hold", "tuned": "undecided", "unlabelled": "cannot be judged",
        "healthy": "cannot be judged", "killed": "not finished",
    }  # fmt: skip
    assert judge(sites["home"], None).judgement == "better than chance"
    assert judge(sites["away"], None).judgement == "not told from chance"
    told = " ".join(summary_sentences(list(sites.values()), sites["home"]))
    assert "The model does not hold at away (loss of AUROC against home 0." in told
    assert "These cases cannot decide whether it holds at tuned (" in told
    assert "Not finished and therefore without figures: killed (killed)." in told


def test_few_cases_are_not_judged(tmp_path):
    (site,) = read_sites([write_run(tmp_path / "small", n=30, signal=5)])
    assert judge(site, None).judgement == "too few cases"
    assert "Too few cases for a verdict" in " ".join(summary_sentences([site], None))


def test_operating_point_chosen_at_a_site_makes_it_the_internal_one(runs, tmp_path):
    home = tmp_path / "home"
    shutil.copytree(runs / "home", home)
    point = json.loads((home / "operating_point.json").read_text()) | {"site": "home"}
    (home / "operating_point.json").write_text(json.dumps(point))
    write_run_json(home, json.loads((home / "run.json").read_text()))
    report = write_report([home, runs / "away"], tmp_path / "report.html")
    assert "loss of AUROC against home" in " ".join(report.summary)
    assert "The threshold was chosen at home" in report.path.read_text(encoding="utf-8")


def test_loss_of_auroc_has_the_interval_of_independent_errors():
    inside = {"value": 0.9, "low": 0.87, "high": 0.93, "n": 9}
    outside = {"value": 0.7, "low": 0.66, "high": 0.74, "n": 9}
    loss = loss_of_auroc(inside, outside)
    assert (loss["value"], loss["low"], loss["high"]) == pytest.approx((0.2, 0.15, 0.25))
    assert loss_of_auroc(inside, {"value": 1.0, "low": None, "high": None, "n": 3}) == {}


def test_interval_by_patients_replaces_that_by_images_where_patients_have_several():
    metrics = {"sensitivity": {"value": 0.5, "low": 0.4, "high": 0.6, "k": 5, "n": 10}}
    of_patients = {"value": 0.5, "low": 0.3, "high": 0.7, "n": 10, "clusters": 6}
    assert figure_of(metrics | {"by_patient": {"sensitivity": of_patients}}, "sensitivity")["low"] == 0.3
    alone = of_patients | {"clusters": 10}
    assert figure_of(metrics | {"by_patient": {"sensitivity": alone}}, "sensitivity")["low"] == 0.4
    no_width = of_patients | {"low": 0.5, "high": 0.5}
    assert figure_of(metrics | {"by_patient": {"sensitivity": no_width}}, "sensitivity")["low"] == 0.4


def test_what_cannot_be_given_says_why(page):
    text = Seen(page).text
    assert "– (no labels)" in text
    assert "– (no case with the finding)" in text
    assert why_missing({}) == "not in this run's metrics"
    assert "nan" not in text.lower().split()
    assert "None" not in text


def test_metrics_of_an_older_version_still_give_a_report(runs, tmp_path):
    old = tmp_path / "home"
    shutil.copytree(runs / "home", old)
    kept = ("auroc", "accuracy", "sensitivity", "specificity", "called_positive")
    metrics = json.loads((old / "metrics.json").read_text())
    (old / "metrics.json").write_text(json.dumps({name: metrics[name] for name in kept}))
    write_run_json(old, json.loads((old / "run.json").read_text()))
    write_report([old], tmp_path / "old.html")
    text = Seen((tmp_path / "old.html").read_text(encoding="utf-8")).text
    assert "– (not in this run's metrics)" in text
    assert "The runs hold no subgroups of labelled cases." in text


def test_flow_counts_every_file_of_a_site_once(runs, page):
    (site,) = read_sites([runs / "home"])
    table = re.search(r"Flow of cases, number.*?</table>", page, re.DOTALL).group()
    rows = re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
    cells = [
        [re.sub("<.*?>", "", cell).strip() for cell in re.findall(r"<t[hd].*?</t[hd]>", row, re.DOTALL)] for row in rows
    ]
    flow = {row[0]: int(row[1]) for row in cells[1:]}
    refused = flow["− a lateral view"] + flow["− no pixel data"]
    assert (flow["− a lateral view"], flow["− no pixel data"]) == (3, 1)
    assert flow["files looked at"] == refused + flow["accepted images"] == 204
    assert flow["with a label"] == flow["with the finding"] + flow["without the finding"] == len(site.labelled)


def test_gallery_has_the_same_rows_for_each_site_and_frames_errors(page):
    gallery = re.search(r'<table class="gallery">.*?</table>', page, re.DOTALL).group()
    rows = re.findall(r"<tr><th scope=\"row\">(.*?)</th>(.*?)</tr>", gallery, re.DOTALL)
    names = [name for name, _ in rows]
    assert names[0] == "false positive 1 (most confident)"
    assert all(row.count("<td ") == 2 for _, row in rows)
    framed = [("false" in name, row.count('class="error"')) for name, row in rows]
    assert all(count == row.count("<img") for (is_error, count), (_, row) in zip(framed, rows, strict=True) if is_error)
    assert gallery.count("data:image/webp;base64,") == 14


def test_no_more_cases_than_asked_for(runs, tmp_path):
    report = write_report([runs / "home"], tmp_path / "few.html", cases=3)
    assert report.path.read_text(encoding="utf-8").count("data:image/webp") == 3
    report = write_report([runs / "home"], tmp_path / "none.html", cases=0)
    assert "data:image/webp" not in report.path.read_text(encoding="utf-8")


def test_five_sites_of_fifty_cases_stay_far_below_15_megabytes(tmp_path):
    report = write_report([write_run(tmp_path / "site", n=60, maps=50, side=160)], tmp_path / "large.html")
    assert report.path.read_text(encoding="utf-8").count("data:image/webp") == 50
    assert 5 * report.path.stat().st_size < 15e6


def test_checklist_fills_what_the_runs_give_and_leaves_the_rest_open(page):
    text = Seen(page[page.index('id="checklists"') :]).text
    assert "ethical approval open" in text
    assert "threshold re-tuned at tuned" in text
    assert "evaluation on internal data home" in text


def test_patients_of_two_sites_are_compared_only_under_one_key(tmp_path):
    first = write_run(tmp_path / "one", n=30)
    second = write_run(tmp_path / "two", n=30, key_id="another")
    third = write_run(tmp_path / "three", n=30)
    write_report([first, second, third], tmp_path / "r.html")
    text = Seen((tmp_path / "r.html").read_text(encoding="utf-8")).text
    assert "one and two – (pseudonyms of different or unknown keys) 0" in text
    assert "one and three 0 0" in text


def test_ages_that_training_never_saw_are_counted(tmp_path):
    folder = write_run(tmp_path / "home", n=30)
    bands = pd.read_csv(folder / "manifest.csv", dtype="str")["age_band"].dropna()
    page = Seen(write_report([folder], tmp_path / "report.html").path.read_text())
    assert "age outside training" in page.text
    assert f"{(bands != '18-39').sum()} of {len(bands)}" in page.text


def test_texts_are_escaped_everywhere(tmp_path):
    hostile = "<script>alert(1)</script>"
    folder = write_run(tmp_path / "x", n=30, bundle=hostile, notes=[hostile], site='"><img src=x>')
    write_report([folder], tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert text.count("<script>") == 1
    assert "<img src=x" not in text
    assert "alert(1)" in Seen(text).text


def test_share_never_reaches_its_end_by_rounding():
    share = {"value": 0.9998, "low": 0.996, "high": 0.99995, "k": 4999, "n": 5000}
    assert share_with_interval(share) == ">99.9 % (99.6 to >99.9), 4,999 of 5,000"


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({}, {"weights_sha256": "ff" * 32}, "different models: weights_sha256"),
        ({}, {"transforms_sha256": "ff" * 32}, "different models: transforms_sha256"),
        ({}, {"bundle": "another"}, "different models: bundle"),
        ({}, {"threshold_id": "other"}, "different locked operating points"),
        ({"site": "same"}, {"site": "same"}, "two runs are of the site same"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(tmp_path, first, second, message):
    folders = [write_run(tmp_path / name, n=10, **what) for name, what in (("a", first), ("b", second))]
    with pytest.raises(RunError, match=message):
        write_report(folders, tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_no_complete_run_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"none of the runs is complete \(dead: killed\)"):
        write_report([write_run(tmp_path / "dead", status="killed")], tmp_path / "r.html")


def test_no_run_at_all_is_refused(tmp_path):
    with pytest.raises(RunError, match="no run is named"):
        write_report([], tmp_path / "r.html")


def test_missing_or_changed_metrics_are_refused(runs, tmp_path):
    shutil.copytree(runs / "home", tmp_path / "home")
    (tmp_path / "home" / "metrics.json").write_text("{}")
    with pytest.raises(RunError, match="metrics.json is not as the run wrote it"):
        write_report([tmp_path / "home"], tmp_path / "r.html")
    write_run_json(tmp_path / "home", json.loads((tmp_path / "home" / "run.json").read_text()))
    with pytest.raises(RunError, match="metrics.json is empty"):
        write_report([tmp_path / "home"], tmp_path / "r.html")
    (tmp_path / "home" / "metrics.json").unlink()
    with pytest.raises(RunError, match="metrics.json is missing"):
        write_report([tmp_path / "home"], tmp_path / "r.html")


def test_internal_site_must_be_among_the_runs(runs, tmp_path):
    with pytest.raises(RunError, match="no complete run is of the internal site 'elsewhere'; there are home"):
        write_report([runs / "home"], tmp_path / "r.html", internal="elsewhere")


def test_command_says_the_summary_and_ends_with_1_where_a_site_did_not_finish(runs, tmp_path):
    words = [str(runs / "home"), "--output", str(tmp_path / "r.html")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0
    assert "Research use only" in done.output
    assert CliRunner().invoke(app, [str(runs / "killed"), *words]).exit_code == 1
    assert isinstance(CliRunner().invoke(app, [str(tmp_path), *words]).exception, RunError)


def test_page_of_another_subject_has_its_own_parts():
    table = Table("Two numbers.", ["name", "n"], [["a", Cell("1,000", sort=1000.0)], ["b", "2"]])
    text = page_html("Title", "below", [Words("first")], [Section("here", "Here", [table])])
    assert set(Seen(text).ids) == {"main", "here", "theme"}
    assert 'data-sort="1000.0"' in text
