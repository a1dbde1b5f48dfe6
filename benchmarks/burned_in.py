# SPDX-License-Identifier: Apache-2.0
"""How much of drawn text `text_rows` finds, by its height; how often it is alarmed without any; what it costs.

    python benchmarks/burned_in.py [--data ../shared/data] [--cost] [--write]

Text like a name with a date is drawn with Pillow's own font at a random place of each image, white where that is dark
and black where it is bright, as consoles do. `--write` puts the tables into docs/dicom.md. Alarms on real images are
counted against what a person saw in the images that raised one: `SEEN`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from tables import DOCS, markdown, write_between

from monai_cnnprimer.dicom.attributes import DicomRefused
from monai_cnnprimer.dicom.burned_in import TextRow, text_rows
from monai_cnnprimer.dicom.reader import read_radiograph
from monai_cnnprimer.phantom import SITES, render

HEIGHTS = (5, 6, 8, 10, 12, 16, 24, 32, 48)  # px, of a capital letter
WORDS = (
    "DOE^JANE 1937-05-19",
    "Doe, Jane  19.05.1937",
    "ID 00471188 DOE J",
    "24-MAR-2019 10:42",
    "St. Mary's Hospital",
)
MARKERS = (None, "R", "L", "PA", "AP")
# Images of nih/hires512 in which a person saw PORTABLE, SUPINE, SITTING and the like; drawn by a machine, all of them.
SEEN = frozenset([
    "00000415_001", "00000506_013", "00001836_010", "00004893_070", "00005712_011", "00013125_000",
    "00018213_000", "00026068_000", "00026190_000", "00026911_000", "00027761_000", "00029118_000",
])  # fmt: skip
Picture = NDArray[np.float32]


def phantoms(count: int, size: int = 512) -> dict[str, Picture]:
    """Clean phantoms of every vendor, most with a lead letter or two."""
    settings = [(seed, SITES[seed % len(SITES)], MARKERS[seed % len(MARKERS)]) for seed in range(count)]
    return {str(seed): render(seed, size, site, marker=marker).image for seed, site, marker in settings}


def pictures(folder: Path, count: int) -> dict[str, Picture]:
    """The first images of a folder, as a reader shows them; DICOM files that are no radiographs are left out."""
    found = {}
    for file in sorted(folder.iterdir())[:count]:
        try:
            found[file.stem] = read_radiograph(file)[0]
        except DicomRefused:
            continue
    return found


def annotated(picture: Picture, height: int, rng: np.random.Generator) -> tuple[Picture, TextRow] | None:
    """The picture with a text, and its box; None where it is too small for such letters."""
    font = next(font for size in range(height, 3 * height) if _capital(font := ImageFont.load_default(size)) >= height)
    text = str(rng.choice(WORDS))
    left, top, right, bottom = (int(round(value)) for value in font.getbbox(text))
    rows, columns = picture.shape
    if columns <= right + 4 or rows <= bottom + 4:
        return None
    x, y = int(rng.integers(2, columns - right - 1)), int(rng.integers(2, rows - bottom - 1))
    page = Image.fromarray((picture * 255).astype(np.uint8))
    under = np.asarray(page)[y + top : y + bottom, x + left : x + right]
    ImageDraw.Draw(page).text((x, y), text, fill=255 if np.median(under) < 150 else 0, font=font)
    box = TextRow(y + top, y + bottom, x + left, x + right, len(text))
    return np.asarray(page, np.float32) / np.float32(255), box


def _capital(font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> float:
    _, top, _, bottom = font.getbbox("H")
    return bottom - top


def is_found(rows: Sequence[TextRow], box: TextRow) -> bool:
    """Whether a row found lies on the text drawn."""
    return any(
        row.top < box.bottom and row.bottom > box.top and row.left < box.right and row.right > box.left for row in rows
    )


def sensitivity(pictures_of: dict[str, Picture], height: int, seed: int) -> str:
    """How many of the texts drawn were found, as a share with its n."""
    rng = np.random.default_rng([seed, height])
    drawn = [one for picture in pictures_of.values() if (one := annotated(picture, height, rng)) is not None]
    found = sum(is_found(text_rows(picture), box) for picture, box in drawn)
    return f"{found / len(drawn):.2f} ({len(drawn)})" if drawn else "-"


def alarms(name: str, pictures_of: dict[str, Picture]) -> list[object]:
    """Of the images without text: how many raised an alarm; of those with one that was seen: how many."""
    alarmed = {key for key, picture in pictures_of.items() if text_rows(picture)}
    with_text = SEEN & pictures_of.keys()
    without = pictures_of.keys() - with_text
    return [name, f"{len(alarmed & without)} of {len(without)}", f"{len(alarmed & with_text)} of {len(with_text)}"]


def cost(folder: Path) -> list[list[object]]:
    """Processor time of looking by that of reading, for each radiograph of a folder."""
    rows: list[list[object]] = []
    for file in sorted(folder.iterdir()):
        try:
            times = []
            for _ in range(3):
                start = time.process_time()
                picture, _receipt = read_radiograph(file)
                middle = time.process_time()
                text_rows(picture)
                times.append((middle - start, time.process_time() - middle))
        except DicomRefused:
            continue
        reading, looking = (min(column) for column in zip(*times, strict=True))
        rows.append([file.stem, f"{picture.shape[0]} x {picture.shape[1]}", f"{looking / reading:.1f}"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--images", type=int, default=30, help="of each kind that text is drawn on")
    parser.add_argument("--cost", action="store_true", help="measure it too, on a machine with nothing else to do")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/dicom.md")
    given = parser.parse_args()
    data: Path = given.data
    kinds = {
        "phantoms, 512 px": phantoms(given.images),
        "NIH, 512 px": pictures(data / "nih" / "hires512", given.images),
        "DICOM files, 440 to 2,446 px": pictures(data / "dicom", 100),
    }
    found = [[height, *(sensitivity(kind, height, 0) for kind in kinds.values())] for height in HEIGHTS]
    quiet = kinds | {
        "NIH, 512 px": pictures(data / "nih" / "hires512", 1000),
        "NIH, 256 px": pictures(data / "nih" / "images", 300),
        "Kermany test, normal, 224 px": pictures(data / "kermany" / "test" / "NORMAL", 234),
    }
    tables = [
        markdown(["height of a capital, px", *(f"found: {name} (n)" for name in kinds)], found),
        markdown(
            ["images", "alarms without text", "alarms with text that was seen"],
            [alarms(*kind) for kind in quiet.items()],
        ),
    ]
    if given.cost:
        tables.append(markdown(["file", "size", "processor time, by that of reading"], cost(data / "dicom")))
    print("\n\n".join(tables))
    if given.write:
        write_between(DOCS / "dicom.md", "benchmarks/burned_in.py", "\n\n".join(tables))


if __name__ == "__main__":
    main()
