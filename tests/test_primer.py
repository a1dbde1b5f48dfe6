# SPDX-License-Identifier: Apache-2.0
"""The primer's page: verdicts that can fall either way, one file that needs no other, the same bytes again."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.ndimage import binary_dilation, binary_erosion, gaussian_filter
from torch import nn

from monai_cnnprimer.explain.receptive_field import ReceptiveField
from monai_cnnprimer.explain.receptive_field_summary import EffectiveReceptiveField
from monai_cnnprimer.networks import resnet50_classifier
from monai_cnnprimer.phantom import SITES, plan_cases, render
from monai_cnnprimer.report import primer, primer_subject
from monai_cnnprimer.report import primer_verdicts as verdicts
from monai_cnnprimer.report.primer_fields import profile_fit, visible_side
from monai_cnnprimer.report.primer_kernels import kernel_section, weights_from_file
from monai_cnnprimer.report.primer_page import Result, Section, Shown, page_html, verdict_table, verdicts_markdown
from monai_cnnprimer.report.primer_subject import (
    Study,
    load_model,
    phantom_patients,
    phantom_picture,
    read_picture,
    rib_mask,
)

ROOT = Path(__file__).parents[1]
SMALL_RESNET = (
    "{_target_: monai.networks.nets.ResNet, block: basic, layers: [1, 1, 1, 1], block_inplanes: [4, 8, 16, 32], "
    "spatial_dims: 2, n_input_channels: 1, conv1_t_stride: 2, num_classes: 2}"
)


def small_resnet(seed: int = 0) -> nn.Module:
    from monai.networks.nets.resnet import ResNet

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ResNet("basic", [1, 1, 1, 1], [4, 8, 16, 32], 2, 1, conv1_t_stride=2, num_classes=2)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared workflow with a small network of random weights at 96 pixels."""
    folder = tmp_path_factory.mktemp("bundle")
    text = (ROOT / "configs" / "inference.yaml").read_text()
    network = "{_target_: monai_cnnprimer.networks.resnet50_classifier}"
    assert network in text
    text = text.replace(network, SMALL_RESNET).replace("image_size: 160", "image_size: 96")
    (folder / "configs").mkdir()
    (folder / "models").mkdir()
    (folder / "configs" / "inference.yaml").write_text(text)
    (folder / "configs" / "metadata.json").write_text(json.dumps({"name": "small", "version": "0.0.1"}))
    torch.save(small_resnet().state_dict(), folder / "models" / "model.pt")
    return folder


@pytest.fixture(scope="module")
def small(monkeypatch_module: pytest.MonkeyPatch) -> None:
    monkeypatch_module.setattr(primer, "PATIENTS", 2)
    monkeypatch_module.setattr(primer_subject, "SIZE", 64)


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def written(bundle, small, tmp_path_factory) -> Path:
    return primer.write_primer(tmp_path_factory.mktemp("primer"), bundle=bundle)


class _Page(HTMLParser):
    """What the page refers to and what it is made of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def values(self, name: str) -> list[str]:
        return [value for _, attributes in self.tags if (value := attributes.get(name))]


class TestPage:
    def test_it_needs_no_other_file_and_no_script(self, written):
        text = written.read_text()
        page = _Page(text)
        assert {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object"} == set()
        assert all(source.startswith("data:image/png;base64,") for source in page.values("src"))
        assert "http" not in re.sub(r"data:image/png;base64,[\w+/=]+", "", text)
        assert "url(" not in text

    def test_every_link_leads_somewhere(self, written):
        page = _Page(written.read_text())
        assert {link.removeprefix("#") for link in page.values("href")} <= set(page.values("id"))
        assert len(page.values("id")) == len(set(page.values("id")))

    def test_each_claim_has_a_verdict_and_each_figure_a_description(self, written):
        page = _Page(written.read_text())
        assert {f"claim-{claim}" for claim in verdicts.CLAIMS} <= set(page.values("id"))
        assert len(page.values("alt")) == len(page.values("src")) >= 10

    def test_it_says_what_it_depends_on(self, written, bundle):
        text = written.read_text()
        sha256 = primer.sha256_of_file(bundle / "models" / "model.pt")
        for words in ("Research use only, not for clinical use", sha256, "small 0.0.1", f"torch {torch.__version__}"):
            assert words in text

    def test_the_tables_hold_the_same_verdicts(self, written):
        table = pd.read_csv(written.with_name("verdicts.csv"))
        assert table["claim"].tolist() == [claim.text for claim in verdicts.CLAIMS.values()]
        markdown = written.with_name("verdicts.md").read_text()
        assert all(f"| *{verdict}* |" in markdown for verdict in table["verdict"])

    def test_the_same_arguments_give_the_same_bytes(self, written, bundle, small, tmp_path):
        state = torch.get_rng_state()
        primer.write_primer(tmp_path, bundle=bundle)
        assert torch.equal(state, torch.get_rng_state())
        for path in written.parent.iterdir():
            assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name

    def test_what_stands_in_it_is_escaped(self):
        section = Section("A & B", ["<b>"], [Result("local", "a | b", "holds")], [Shown(b"png", 'say "x"')])
        text = page_html([section], {"image": "<script>"})
        assert "<script>" not in text
        assert "&lt;b&gt;" in text
        assert r"a \| b" in verdicts_markdown([section], {})
        assert verdict_table([section])["measured"].tolist() == ["a | b"]

    def test_the_page_of_the_documentation_has_the_claims_and_rules_of_today(self):
        page = (ROOT / "docs" / "primer.md").read_text()
        for claim in verdicts.CLAIMS.values():
            assert f"| {claim.text.replace('|', chr(92) + '|')} |" in page
            assert f"- {claim.text} *Rule*: {claim.rule}." in page


class TestSubject:
    def test_a_picture_of_ones_own_goes_through_the_bundles_preprocessing(self, bundle, tmp_path):
        name = tmp_path / "Doe^Jane.png"
        Image.fromarray((255 * render(5, size=128).image).astype(np.uint8)).resize((96, 128)).save(name)
        model = load_model(bundle)
        picture = read_picture(model, name)
        assert picture.image.shape == (1, 1, 96, 96)
        assert (picture.spacing_mm, picture.masks) == (None, {})
        assert "Doe" not in picture.origin
        setting = primer.describe_setting(Study(model, picture, [], 0))
        assert "one pixel: unknown" in setting["network's input"]

    def test_a_picture_that_is_not_there_is_told(self, bundle, tmp_path):
        with pytest.raises(FileNotFoundError, match="--image: there is no such file"):
            read_picture(load_model(bundle), tmp_path / "none.png")

    def test_the_phantom_is_read_back_with_its_millimetres_and_masks(self, bundle, small):
        picture = phantom_picture(load_model(bundle), seed=0)
        assert picture.spacing_mm == pytest.approx((SITES[0].width_mm / 96,) * 2)
        pixels, marker = picture.pixels, picture.masks["marker"]
        assert np.median(pixels[picture.masks["lung"]]) < np.median(pixels[picture.masks["heart"]])
        around = binary_dilation(marker, iterations=3) & ~marker
        assert pixels[marker].max() > pixels[around].max() + 0.5

    def test_ribs_lie_where_the_phantom_has_them(self):
        case = plan_cases(SITES[0], 1, seed=3)[0]
        radiograph = render(case.seed, 256, case.site)
        ribs, lung = rib_mask(case, 256), binary_erosion(radiograph.masks["lung"], iterations=6)
        detail = radiograph.image - gaussian_filter(radiograph.image, 8)

        def contrast(down: int, right: int) -> float:
            moved = np.roll(ribs, (down, right), axis=(0, 1))
            return detail[lung & moved].mean() - detail[lung & ~moved].mean()

        assert max(range(-8, 9), key=lambda shift: contrast(shift, 0)) in (-1, 0, 1)
        assert contrast(0, 0) > 0.02 > 0 > contrast(8, 0)

    def test_patients_differ_only_by_what_is_added(self, bundle, small):
        patient = next(phantom_patients(load_model(bundle), 1, seed=0))
        changed = (patient.finding - patient.healthy).abs()[0, 0].numpy()
        assert changed[patient.masks["finding"]].mean() > 10 * changed[~patient.masks["lung"]].mean()
        assert (patient.marked - patient.healthy).abs().amax() > 0.5


class TestFields:
    def test_a_bell_with_the_teeth_of_strides_is_a_gaussian(self):
        place = np.arange(64)
        bell = np.exp(-0.5 * ((place - 30) / 8) ** 2) * np.where(place % 4 < 2, 1.5, 0.5)
        found = field(np.outer(bell, bell))
        assert found.gaussian.error > 0.5
        assert profile_fit(found).error < 0.05
        assert profile_fit(found).sigma == pytest.approx((8, 8), rel=0.05)

    def test_what_is_flat_is_none(self):
        flat = np.zeros((64, 64))
        flat[16:48, 16:48] = 1
        assert profile_fit(field(flat)).error > 0.15

    @pytest.mark.parametrize(("size", "side"), [(21, 21), (1001, 64)])
    def test_only_the_window_inside_the_image_counts(self, size, side):
        assert visible_side(field(np.ones((64, 64)), size)) == pytest.approx(side)


def field(values: np.ndarray, size: int = 21) -> EffectiveReceptiveField:
    geometry = ReceptiveField(size=size, jump=1, start=0)
    return EffectiveReceptiveField("layer1", torch.from_numpy(values), geometry, (30, 30), images=1, seeds=1)


class TestKernels:
    def test_what_cannot_be_told_has_no_verdict(self, bundle, small, tmp_path):
        model = load_model(bundle)
        torch.save(small_resnet(seed=1).state_dict(), tmp_path / "other.pt")
        picture = phantom_picture(model, 0)._replace(masks={})
        study = Study(model, picture, list(phantom_patients(model, 2, 0)), 0, tmp_path / "other.pt")
        sobel, first, _ = kernel_section(study).results
        assert "Not counted, since not before and after one training: pretrained file to bundle." in first.measured
        assert sobel.verdict == "not measured here"
        assert "ribs and marker are not told apart" in sobel.measured


def test_a_classifier_that_a_file_lacks_is_not_compared(tmp_path):
    network = resnet50_classifier()
    encoder = {key: value for key, value in resnet50_classifier().state_dict().items() if not key.startswith("fc.")}
    torch.save(encoder, tmp_path / "encoder.pt")
    found = weights_from_file(network, tmp_path / "encoder.pt")
    assert torch.equal(found["layer4.2.conv3.weight"], encoder["layer4.2.conv3.weight"])
    assert "fc.weight" not in found


def changes(first: float, slope: float, cosine: float = 1.0) -> pd.DataFrame:
    """Ten layers of change 1, 1 + slope, ..., but for the first."""
    moved = 1 + slope * np.arange(10.0)
    moved[0] = first
    return pd.DataFrame({"depth": range(10), "relative_change": moved, "cosine": cosine})


def errors(*values: float) -> pd.DataFrame:
    return pd.DataFrame({"shift": range(len(values)), "error": values})


def pooled(kept: dict[str, list[float]], detected: dict[str, list[float]] | None = None) -> pd.DataFrame:
    rows = []
    for pooling in ("max", "average", "none"):
        for i, value in enumerate(kept.get(pooling, [1.0, 1.0])):
            found = (detected or {}).get(pooling, [1.0, 1.0])[i]
            rows.append({"pooling": pooling, "window": 4, "contrast": 2.0**i, "kept": value, "detected": found})
    return pd.DataFrame(rows)


YES, NO, EITHER, NONE = "holds", "does not", "depends", "not measured here"


class TestVerdicts:
    @pytest.mark.parametrize(("share", "verdict"), [(0.01, YES), (0.02, EITHER), (0.5, NO)])
    def test_local(self, share, verdict):
        assert verdicts.judge_local(share) == verdict

    @pytest.mark.parametrize(("dense", "first", "verdict"), [(51_380_224, 9408, YES), (40_000_000, 9408, NO)])
    def test_dense(self, dense, first, verdict):
        assert verdicts.judge_dense(dense, first) == verdict

    @pytest.mark.parametrize(
        ("tables", "verdict"),
        [
            ([errors(0, 1e-7, 1e-7)], YES),
            ([errors(0, 1e-7, 1e-7), errors(0, 0.3, 1e-7)], EITHER),
            ([errors(0, 0.3, 0.2)], NO),
        ],
    )
    def test_shift(self, tables, verdict):
        assert verdicts.judge_shift(tables) == verdict

    @pytest.mark.parametrize(
        ("ribs", "marker", "between", "verdict"),
        [(1.2, 1.3, 1.0, YES), (1.1, 1.3, 1.0, EITHER), (1.2, 1.0, 1.0, EITHER), (1.2, 0.6, 1.0, NO)],
    )
    def test_sobel(self, ribs, marker, between, verdict):
        assert verdicts.judge_sobel(ribs, marker, between) == verdict

    @pytest.mark.parametrize(
        ("tables", "verdict"),
        [
            ([changes(0.1, 0.0)], YES),
            ([changes(0.1, 0.0), changes(2.0, 0.0)], EITHER),
            ([changes(2.0, 0.0)], NO),
            ([changes(0.1, 0.0), changes(2.0, 0.0, cosine=0.1)], YES),
            ([changes(2.0, 0.0, cosine=0.1)], NONE),
            ([changes(0.0, 0.0).assign(relative_change=0.0)], NONE),
        ],
    )
    def test_first_kernels(self, tables, verdict):
        assert verdicts.judge_first(dict(enumerate(tables))) == verdict

    @pytest.mark.parametrize(
        ("tables", "verdict"),
        [
            ([changes(1.0, 0.1)], YES),
            ([changes(1.0, 0.1), changes(1.0, -0.1)], EITHER),
            ([changes(1.0, -0.1)], NO),
            ([changes(1.0, 0.1, cosine=0.0)], NONE),
        ],
    )
    def test_depth(self, tables, verdict):
        assert verdicts.judge_depth(dict(enumerate(tables))) == verdict

    @pytest.mark.parametrize(("sides", "verdict"), [((56, 14, 7), YES), ((56, 14, 14), EITHER), ((40, 10, 5), NO)])
    def test_grids(self, sides, verdict):
        layers = ("layer1", "layer3", "layer4")
        assert verdicts.judge_grids({layer: (side, side) for layer, side in zip(layers, sides, strict=True)}) == verdict

    @pytest.mark.parametrize(
        ("sparseness", "alike", "verdict"),
        [((0.5, 0.7), (0.7, 0.2), YES), ((0.5, 0.4), (0.7, 0.2), EITHER), ((0.5, 0.4), (0.2, 0.7), NO)],
    )
    def test_sparse(self, sparseness, alike, verdict):
        assert verdicts.judge_sparse(sparseness, alike) == verdict

    @pytest.mark.parametrize(
        ("largest", "average", "verdict"),
        [([0.8, 0.9], [0.5, 0.5], YES), ([0.6, 0.9], [0.5, 0.5], EITHER), ([0.6, 0.7], [0.5, 0.5], NO)],
    )
    def test_peaks(self, largest, average, verdict):
        assert verdicts.judge_peaks(pooled({"max": largest, "average": average})) == verdict

    @pytest.mark.parametrize(
        ("largest", "average", "before", "verdict"),
        [
            ([0.1, 0.1], [0.1, 0.1], [0.6, 0.9], YES),
            ([0.1, 0.9], [0.1, 0.9], [0.6, 0.9], EITHER),
            ([0.5, 0.9], [0.5, 0.9], [0.6, 0.9], NO),
            ([0.1, 0.9], [0.1, 0.9], [0.4, 0.9], NO),  # what could not be found before is not lost
            ([0.1, 0.1], [0.1, 0.1], [0.2, 0.4], NONE),
        ],
    )
    def test_vanish(self, largest, average, before, verdict):
        assert verdicts.judge_vanish([pooled({}, {"max": largest, "average": average, "none": before})]) == verdict

    @pytest.mark.parametrize(("ratios", "verdict"), [((0.3, 0.5), YES), ((0.3, 0.6), EITHER), ((0.95, 0.9), NO)])
    def test_far_smaller(self, ratios, verdict):
        assert verdicts.judge_far_smaller(ratios) == verdict

    @pytest.mark.parametrize(("fits", "verdict"), [((0.05, 0.1), YES), ((0.05, 0.2), EITHER), ((0.3, 0.4), NO)])
    def test_gaussian(self, fits, verdict):
        assert verdicts.judge_gaussian(fits) == verdict

    @pytest.mark.parametrize(("fit", "verdict"), [(True, YES), (None, EITHER), (False, NO)])
    def test_gradcam(self, fit, verdict):
        assert verdicts.judge_gradcam(fit) == verdict

    @pytest.mark.parametrize(
        ("marker", "marked", "finding", "found", "verdict"),
        [
            (0.2, (0.1, 0.3), 1.0, (0.5, 1.5), YES),
            (-0.2, (-0.3, -0.1), 1.0, (0.5, 1.5), YES),
            (0.2, (-0.1, 0.5), 1.0, (0.5, 1.5), EITHER),
            (0.01, (-0.05, 0.07), 1.0, (0.5, 1.5), NO),
            (0.2, (0.1, 0.3), 1.0, (-0.5, 2.5), EITHER),
        ],
    )
    def test_shortcut(self, marker, marked, finding, found, verdict):
        assert verdicts.judge_shortcut(marker, marked, finding, found) == verdict

    def test_every_claim_has_a_rule(self):
        assert all(claim.text.endswith(".") and claim.rule for claim in verdicts.CLAIMS.values())
