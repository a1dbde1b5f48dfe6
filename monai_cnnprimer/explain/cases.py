# SPDX-License-Identifier: Apache-2.0
"""Which cases of an evaluation to show: chosen by rule, one pass, memory bounded by their number."""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ExplainedCase:
    """One image of an evaluation and what the network made of it.

    Attributes:
        case_id: as in the case table; the running number in the evaluation where the batch has none.
        image: the network's input `(C, H, W)`.
        maps: layer name to the signed raw Grad-CAM map `(1, h, w)`, float32.
        logits: `(K,)`, float32.
        label: class, or None when unknown.
        network_spacing_mm: (row, column) on the patient for one pixel of `image`, or None when unknown.
        threshold: probability of class 1 from which it is predicted, where there are two classes.
    """

    case_id: str
    image: Tensor
    maps: Mapping[str, Tensor]
    logits: Tensor
    label: int | None = None
    network_spacing_mm: tuple[float, float] | None = None
    threshold: float = 0.5

    @property
    def predicted(self) -> int:
        """Class at the operating point, of more than two the one of the highest logit."""
        return int(self._decided().argmax())

    @property
    def probability(self) -> float:
        """Softmax probability of the predicted class (of a single logit, by its sigmoid)."""
        return float(self._two_sided().softmax(dim=0)[self.predicted])

    @property
    def confidence(self) -> float:
        """Log odds beyond the operating point, which still rank where probabilities have run into 1."""
        logits = self._decided()
        others = torch.cat([logits[: self.predicted], logits[self.predicted + 1 :]])
        return float(logits[self.predicted] - others.logsumexp(dim=0))

    @property
    def is_error(self) -> bool:
        """Whether the label is known and another class was predicted."""
        return self.label is not None and self.label != self.predicted

    def kept(self) -> ExplainedCase:
        """A copy on the CPU that does not hold on to the batch it came from."""
        maps = {layer: _copied(layer_map) for layer, layer_map in self.maps.items()}
        return replace(self, image=_copied(self.image), maps=maps, logits=_copied(self.logits))

    def _two_sided(self) -> Tensor:
        logits = self.logits.double()
        return torch.cat([torch.zeros_like(logits), logits]) if len(logits) == 1 else logits

    def _decided(self) -> Tensor:
        """Logits from which the operating point is taken off, so that the highest is the class predicted."""
        logits = self._two_sided()
        if len(logits) != 2:
            return logits
        return logits - logits.new_tensor([0.0, math.log(self.threshold / (1 - self.threshold))])


def errors_first(case: ExplainedCase) -> tuple[float, ...]:
    """The default rule: the most confident errors, then the most confident cases.

    Confidence counts to 0.001: the last digits of a logit depend on the batch that a case happens to be in.
    """
    return float(case.is_error), round(case.confidence, 3)


class ChosenCases:
    """The cases of highest priority seen so far, at most `max_images`; the order of arrival does not matter.

    Args:
        max_images: how many to keep.
        priority: numbers that rank a case, compared one after the other, the highest kept; equals go by case id.
    """

    def __init__(self, max_images: int, priority: Callable[[ExplainedCase], tuple[float, ...]] = errors_first) -> None:
        if max_images < 0:
            raise ValueError(f"max_images must not be negative, got {max_images}")
        self.max_images = max_images
        self.priority = priority
        self._ranked: list[tuple[tuple[float, ...], str, ExplainedCase]] = []

    @property
    def cases(self) -> list[ExplainedCase]:
        """The chosen cases, highest priority first."""
        return [case for _, _, case in self._ranked]

    def offer(self, case: ExplainedCase) -> None:
        """Keeps a copy of the case if it ranks among the chosen; one that is already there is not kept twice."""
        rank = (tuple(_descending(value) for value in self.priority(case)), case.case_id)
        if any(case_id == case.case_id for _, case_id, _ in self._ranked):
            return
        if len(self._ranked) < self.max_images or (self._ranked and rank < self._ranked[-1][:2]):
            insort(self._ranked, (*rank, case.kept()), key=lambda ranked: ranked[:2])
            del self._ranked[self.max_images :]


def batch_cases(
    batch: Any, maps: Mapping[str, Tensor], logits: Tensor, first: int = 0, threshold: float = 0.5
) -> list[ExplainedCase]:
    """The cases of one batch.

    Args:
        batch: a dictionary with `image` `(N, C, H, W)` and, where known, `case_id`, `label` (one class a case, negative
            for unknown) and `network_spacing_mm` `(N, 2)`; a list of such dictionaries, one a case (decollated); or a
            pair of images and labels.
        maps: layer name to `(N, 1, h, w)`.
        logits: `(N, K)`.
        first: running number of the batch's first case, for batches without `case_id`.
        threshold: as in `ExplainedCase`.

    Raises:
        ValueError: the batch has another number of cases than the logits.
    """
    items = _items(batch)
    if len(items) != len(logits):
        raise ValueError(
            f"the network's last forward had {len(logits)} images, the batch has {len(items)}; sliding windows and "
            "test-time augmentation have no map of the whole image"
        )
    return [
        ExplainedCase(
            case_id=str(item.get("case_id", f"{first + i:06d}")),
            image=torch.as_tensor(item["image"]),
            maps={layer: layer_maps[i] for layer, layer_maps in maps.items()},
            logits=logits[i].float(),
            label=_label(item.get("label")),
            network_spacing_mm=_spacing(item.get("network_spacing_mm")),
            threshold=threshold,
        )
        for i, item in enumerate(items)
    ]


_KEYS = ("image", "case_id", "label", "network_spacing_mm")


def _items(batch: Any) -> list[Mapping[str, Any]]:
    if isinstance(batch, Mapping):
        columns = {key: batch[key] for key in _KEYS if key in batch}
        return [{key: column[i] for key, column in columns.items()} for i in range(len(batch["image"]))]
    if isinstance(batch, Sequence) and batch and isinstance(batch[0], Mapping):
        return list(batch)
    if isinstance(batch, Sequence) and len(batch) == 2:
        return _items({"image": batch[0], "label": batch[1]})
    raise ValueError("a batch must be a dictionary with 'image', a list of such, or a pair of images and labels")


def _label(value: Any) -> int | None:
    """A class; a label that is not one number (a mask) counts as unknown, as does a negative one."""
    if value is None or torch.as_tensor(value).numel() != 1:
        return None
    label = int(torch.as_tensor(value))
    return label if label >= 0 else None


def _spacing(value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    row, column = (float(mm) for mm in value)
    return (row, column) if row > 0 and column > 0 else None


def _descending(value: float) -> float:
    """Sorts high values first, and a value that is no number last."""
    return math.inf if math.isnan(value) else -value


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().as_subclass(Tensor).to("cpu", torch.float32, copy=True)
