# SPDX-License-Identifier: Apache-2.0
"""Which cases of an evaluation to show: chosen by rule in one pass, memory bounded by number and bytes."""

from __future__ import annotations

import hmac
import math
from bisect import insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, cycle
from typing import Any

import torch
from torch import Tensor

GROUPS = ("error", "least confident", "most confident", "random")


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
        explained: the class that the maps explain; None where they explain another score.
        chosen_as: the group of `GROUPS` that chose the case; empty before.
    """

    case_id: str
    image: Tensor
    maps: Mapping[str, Tensor]
    logits: Tensor
    label: int | None = None
    network_spacing_mm: tuple[float, float] | None = None
    threshold: float = 0.5
    explained: int | None = None
    chosen_as: str = ""

    @property
    def predicted(self) -> int:
        """Class at the operating point, of more than two the one of the highest logit."""
        return int(predicted_classes(self.logits[None], self.threshold))

    @property
    def probability(self) -> float:
        """Softmax probability of the predicted class (of a single logit, by its sigmoid)."""
        return float(_two_sided(self.logits[None]).softmax(dim=1)[0, self.predicted])

    @property
    def confidence(self) -> float:
        """Log odds beyond the operating point, which still rank where probabilities have run into 1."""
        logits = _decided(self.logits[None], self.threshold)[0]
        others = torch.cat([logits[: self.predicted], logits[self.predicted + 1 :]])
        return float(logits[self.predicted] - others.logsumexp(dim=0))

    @property
    def is_error(self) -> bool:
        """Whether the label is known and another class was predicted."""
        return self.label is not None and self.label != self.predicted

    @property
    def nbytes(self) -> int:
        """Bytes in float32 of the image, the raw maps, and the maps at the size of the image, as they are written."""
        height, width = self.image.shape[-2:]
        raw = self.image.numel() + sum(layer_map.numel() for layer_map in self.maps.values())
        return 4 * (raw + len(self.maps) * height * width)

    def kept(self) -> ExplainedCase:
        """A copy on the CPU that does not hold on to the batch it came from."""
        maps = {layer: _copied(layer_map) for layer, layer_map in self.maps.items()}
        return replace(self, image=_copied(self.image), maps=maps, logits=_copied(self.logits))


def predicted_classes(logits: Tensor, threshold: float = 0.5) -> Tensor:
    """The class of each case at an operating point; of more than two classes that of the highest logit.

    Args:
        logits: `(N, K)`; a single one is that of class 1.
        threshold: probability of class 1 from which it is predicted.

    Returns:
        `(N,)` int64.

    Example:
        >>> predicted_classes(torch.tensor([[0.0, 1.0], [0.0, 2.0]]), threshold=0.8)
        tensor([0, 1])
    """
    return _decided(logits, threshold).argmax(dim=1)


def _two_sided(logits: Tensor) -> Tensor:
    logits = logits.double()
    return torch.cat([torch.zeros_like(logits), logits], dim=1) if logits.shape[1] == 1 else logits


def _decided(logits: Tensor, threshold: float) -> Tensor:
    """Logits from which the operating point is taken off, so that the highest is the class predicted."""
    logits = _two_sided(logits)
    if logits.shape[1] != 2:
        return logits
    return logits - logits.new_tensor([0.0, math.log(threshold / (1 - threshold))])


class ChosenCases:
    """Errors, doubtful, sure and random cases in equal shares, bounded by number and bytes.

    The groups choose in turn, each its best case that is still free, until there are `max_images`: a quarter each, and
    what one group cannot fill goes to the others. Errors come by falling confidence, the random sample by a hash of
    the case id, keyed with the seed. Neither batch size nor order of arrival matters.

    Args:
        max_images: how many cases to choose.
        max_bytes: of the cases held at any time, as `ExplainedCase.nbytes` counts; a quarter for each group.
        seed: of the random sample.

    Attributes:
        too_large: how many cases were passed over since each has more than a quarter of `max_bytes`.

    Example:
        >>> chosen = ChosenCases(max_images=2)
        >>> for name, logit in [("a", 0.3), ("b", 4.0), ("c", -1.0)]:
        ...     chosen.offer(ExplainedCase(name, torch.zeros(1, 2, 2), {}, torch.tensor([0.0, logit]), label=1))
        >>> [(case.case_id, case.chosen_as) for case in chosen.cases]
        [('c', 'error'), ('a', 'least confident')]
    """

    def __init__(self, max_images: int, max_bytes: int = 2**28, seed: int = 0) -> None:
        if max_images < 0 or max_bytes < 0:
            raise ValueError(f"max_images and max_bytes must not be negative, got {max_images} and {max_bytes}")
        self.max_images = max_images
        self.max_bytes = max_bytes
        self.seed = seed
        self.too_large = 0
        self._held: dict[str, ExplainedCase] = {}
        self._rankings = {group: _Ranking(max_images, max_bytes // len(GROUPS)) for group in GROUPS}

    @property
    def cases(self) -> list[ExplainedCase]:
        """The chosen cases in the order of choice: first error, least confident, most confident, random, second ..."""
        chosen: dict[str, ExplainedCase] = {}
        groups = cycle(GROUPS)
        while len(chosen) < min(self.max_images, len(self._held)):
            group = next(groups)
            best = next((case_id for case_id in self._rankings[group].best if case_id not in chosen), None)
            if best is not None:
                chosen[best] = replace(self._held[best], chosen_as=group)
        return list(chosen.values())

    def offer(self, case: ExplainedCase) -> None:
        """Holds a copy of the case while it ranks among the best of a group; one that is held is not taken twice."""
        if case.case_id in self._held:
            return
        if case.nbytes > self.max_bytes // len(GROUPS):
            self.too_large += 1
            return
        for group, rank in _ranks(case, self.seed).items():
            self._rankings[group].enter((rank, case.case_id, case.nbytes))
        wanted = {case_id for ranking in self._rankings.values() for case_id in ranking.best}
        self._held = {case_id: held for case_id, held in self._held.items() if case_id in wanted}
        if case.case_id in wanted:
            self._held[case.case_id] = case.kept()


class _Ranking:
    """The best cases of one group, as many as the bounds allow, whatever the order in which they come."""

    def __init__(self, max_images: int, max_bytes: int) -> None:
        self.best: list[str] = []
        self._bounds = max_images, max_bytes
        self._entries: list[tuple[float, str, int]] = []

    def enter(self, entry: tuple[float, str, int]) -> None:
        """Ranks a case by rank, case id, bytes."""
        max_images, max_bytes = self._bounds
        insort(self._entries, entry)
        totals = accumulate(nbytes for _, _, nbytes in self._entries)
        within = min(sum(total <= max_bytes for total in totals), max_images)
        # The first beyond the bounds stays as a mark: it can only be pushed on, and nothing behind it may come in.
        del self._entries[within + 1 :]
        self.best = [case_id for _, case_id, _ in self._entries[:within]]


def _ranks(case: ExplainedCase, seed: int) -> dict[str, float]:
    """The rank of a case in each group that it belongs to, the best lowest, no number last.

    Confidence counts to 0.001: the last digits of a logit depend on the batch that a case happens to be in.
    """
    confidence = round(case.confidence, 3)
    drawn = hmac.digest(str(seed).encode(), case.case_id.encode("utf-8", "surrogateescape"), "sha256")
    ranks = {
        "least confident": confidence,
        "most confident": -confidence,
        "random": float(int.from_bytes(drawn[:6])),
    }
    if case.is_error:
        ranks["error"] = -confidence
    return {group: math.inf if math.isnan(rank) else rank for group, rank in ranks.items()}


def batch_cases(
    batch: Any,
    maps: Mapping[str, Tensor],
    logits: Tensor,
    first: int = 0,
    threshold: float = 0.5,
    explained: Sequence[int | None] | None = None,
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
        explained: one a case, as in `ExplainedCase`; None where no class is.

    Raises:
        ValueError: the batch has another number of cases than the logits.
    """
    items = _items(batch)
    if len(items) != len(logits):
        raise ValueError(
            f"the network's last forward had {len(logits)} images, the batch has {len(items)}; sliding windows and "
            "test-time augmentation have no map of the whole image"
        )
    logits = logits.float().cpu()  # once a batch, since each case's logits are looked at
    return [
        ExplainedCase(
            case_id=str(item.get("case_id", f"{first + i:06d}")),
            image=torch.as_tensor(item["image"]),
            maps={layer: layer_maps[i] for layer, layer_maps in maps.items()},
            logits=logits[i],
            label=_label(item.get("label")),
            network_spacing_mm=_spacing(item.get("network_spacing_mm")),
            threshold=threshold,
            explained=None if explained is None else explained[i],
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


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().as_subclass(Tensor).to("cpu", torch.float32, copy=True)
