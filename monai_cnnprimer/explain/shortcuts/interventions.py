# SPDX-License-Identifier: Apache-2.0
"""All interventions by name, and how one is made: the same case, name and seed give the same pixels."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from monai_cnnprimer.explain.shortcuts import appearance, covering, markers, tubes
from monai_cnnprimer.explain.shortcuts.change import Pair, Subject


@dataclass(frozen=True)
class Intervention:
    """One intervention.

    Attributes:
        name: as in `configs/gate.yaml`.
        what: is done, for a person to read.
        control: what its control does; empty where it has none.
        act: does it.
        needs: masks without which it is not done.
    """

    name: str
    what: str
    control: str
    act: Callable[[Subject, np.random.Generator], Pair]
    needs: tuple[str, ...] = ()


_COVERS = "as many pixels covered, those farthest away"
_ABSORBS = "the same absorption gathered to a blob in a lower corner"
_ALL = (
    Intervention(
        "marker_insert",
        "a side marker inserted",
        "the same ink in the opposite lower corner, upside down",
        markers.insert_marker,
    ),
    Intervention(
        "marker_remove", "the side marker removed", "as much filled in the other corner", markers.remove_marker
    ),
    Intervention("marker_swap", "another letter as side marker", "its own ink mirrored", markers.swap_marker),
    Intervention("tube", "a gastric tube inserted", _ABSORBS, tubes.insert_tube),
    Intervention("wire", "the lead of an electrocardiograph inserted", _ABSORBS, tubes.insert_wire),
    Intervention("border", "a collimated border added", "the same pixels blurred", covering.border),
    Intervention("brighter", "brighter, as less exposed", "", appearance.brighter),
    Intervention("darker", "darker, as more exposed", "", appearance.darker),
    Intervention("gamma", "another gamma", "", appearance.gamma),
    Intervention("polarity", "the other polarity", "", appearance.invert),
    Intervention("blur", "blurred", "", appearance.blur),
    Intervention("noise", "noise added", "", appearance.noise),
    Intervention("resample", "halved and enlarged again", "", appearance.resample),
    Intervention("jpeg", "compressed as JPEG", "", appearance.compress),
    Intervention("aspect", "squeezed to another aspect", "", appearance.squeeze),
    Intervention("flip", "left and right exchanged", "", appearance.flip),
    Intervention("lungs_covered", "the lungs covered", _COVERS, covering.cover_lungs, ("lung",)),
    Intervention("lung_box_covered", "a box around the lungs covered", _COVERS, covering.cover_lung_box, ("lung",)),
    Intervention("lungs_only", "all but the lungs covered", _COVERS, covering.cover_all_but_lungs, ("lung",)),
)
INTERVENTIONS = {one.name: one for one in _ALL}


def intervene(name: str, subject: Subject, seed: int = 0, case: str = "") -> Pair:
    """Changes a radiograph, and beside it makes the control.

    Args:
        name: a key of `INTERVENTIONS`.
        subject: the radiograph; it is left as it is.
        seed: of all that is drawn.
        case: name of the case, so that each is drawn for anew.

    Raises:
        ValueError: no intervention of this name.
        LeftOut: this case cannot be intervened on, such as where there is no marker to remove.

    Example:
        >>> pair = intervene("border", Subject(np.full((64, 64), 0.5, np.float32)))
        >>> bool((pair.changed.image[pair.changed.where] == 0).all()), float(pair.changed.image[32, 32])
        (True, 0.5)
    """
    if name not in INTERVENTIONS:
        raise ValueError(f"no intervention {name!r}: choose among {', '.join(INTERVENTIONS)}")
    rng = np.random.default_rng([seed, zlib.crc32(f"{name}/{case}".encode())])
    return INTERVENTIONS[name].act(subject, rng)
