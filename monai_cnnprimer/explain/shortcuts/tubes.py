# SPDX-License-Identifier: Apache-2.0
"""Tubes and wires: thin things that absorb a part of the beam, so that the chest shows through them."""

from __future__ import annotations

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.ndimage import distance_transform_edt

from monai_cnnprimer.explain.shortcuts.change import Array, Pair, Subject, attenuated, gathered, within

TUBE_WIDTH = 0.014
"""Of the image's width: a gastric tube of 5 to 6 mm on a plate of 384 mm."""
WIRE_WIDTH = 0.006


def insert_tube(subject: Subject, rng: np.random.Generator) -> Pair:
    """A gastric tube: down the midline from the neck, past the diaphragm to the stomach, its wall denser than its core.

    The control absorbs the same: the same values in as many pixels, gathered to a blob in a lower corner.
    """
    image = subject.image
    rows, columns = image.shape
    end, bend = rng.uniform(0.78, 0.9), rng.uniform(0.06, 0.14)
    middle = 0.5 + rng.uniform(-0.02, 0.02)
    knots = np.array([0.0, 0.25, 0.5, 0.7, end])
    across = np.array([middle, middle - 0.012, middle + 0.004, middle + 0.01, middle + bend])
    distance = _distance(image.shape, knots * (rows - 1), across * (columns - 1))
    radius = max(0.8, TUBE_WIDTH * columns / 2)
    return _pair(image, _hollow(distance, radius), rng)


def insert_wire(subject: Subject, rng: np.random.Generator) -> Pair:
    """The lead of an electrocardiograph: a thin dense wire over one side of the chest to the electrode's button.

    The control is as for the tube.
    """
    image = subject.image
    rows, columns = image.shape
    side = rng.choice((-1, 1))
    knots = np.array([0.0, 0.15, 0.32, rng.uniform(0.42, 0.55)])
    out = np.array([0.12, 0.2, 0.24, rng.uniform(0.2, 0.3)]) + rng.uniform(-0.03, 0.03, 4)
    distance = _distance(image.shape, knots * (rows - 1), (0.5 + side * out) * (columns - 1))
    radius = max(0.6, WIRE_WIDTH * columns / 2)
    wire = np.clip(radius + 0.5 - distance, 0, 1) * 0.9
    row, column = np.indices(image.shape)
    button = np.hypot(row - knots[-1] * (rows - 1), column - (0.5 + side * out[-1]) * (columns - 1))
    electrode = np.clip(0.014 * columns + 0.5 - button, 0, 1) * 1.1
    return _pair(image, np.maximum(wire, electrode).astype(np.float32), rng)


def _pair(image: Array, absorption: Array, rng: np.random.Generator) -> Pair:
    radius = np.sqrt(np.count_nonzero(absorption) / np.pi) + 1
    rows, columns = image.shape
    left = bool(rng.integers(2))
    centre = rows - 1 - radius - 0.02 * rows, radius + 0.02 * columns
    blob = gathered(absorption, (centre[0], centre[1] if left else columns - 1 - centre[1]))
    return Pair(
        within(image, attenuated(image, absorption), absorption > 0),
        within(image, attenuated(image, blob), blob > 0),
    )


def _hollow(distance: Array, radius: float) -> Array:
    """Absorption of a tube seen from the side: its wall along the beam, densest at both edges, and a lead line."""
    outer = np.sqrt(np.maximum(1 - (distance / radius) ** 2, 0))
    inner = 0.65 * np.sqrt(np.maximum(1 - (distance / (0.65 * radius)) ** 2, 0))
    edge = np.clip(radius + 0.5 - distance, 0, 1)
    line = np.clip(0.22 * radius + 0.5 - distance, 0, 1)
    return (edge * (0.12 + 0.4 * (outer - inner)) + 0.25 * line).astype(np.float32)


def _distance(shape: tuple[int, ...], rows: Array, columns: Array) -> Array:
    """Pixels from each pixel to a smooth curve through points, given from top to bottom."""
    at = np.arange(rows[0], rows[-1], 0.25)
    row = np.clip(np.rint(at).astype(int), 0, shape[0] - 1)
    column = np.clip(np.rint(PchipInterpolator(rows, columns)(at)).astype(int), 0, shape[1] - 1)
    curve = np.ones(shape, dtype=bool)
    curve[row, column] = False
    return distance_transform_edt(curve).astype(np.float32)
