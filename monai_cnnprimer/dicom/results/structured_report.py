# SPDX-License-Identifier: Apache-2.0
"""Scores, operating point, model and hashes as a Comprehensive SR by TID 1500 (PS3.16)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from highdicom.sr import (
    AlgorithmIdentification,
    CodedConcept,
    ComprehensiveSR,
    DeviceObserverIdentifyingAttributes,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    QualitativeEvaluation,
    SourceImageForMeasurementGroup,
    TrackingIdentifier,
)
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from monai_cnnprimer.dicom.results.identity import (
    PACKAGE,
    RESEARCH_ONLY,
    finished,
    referenced,
    refusing_faults,
    series_of,
    uid,
)
from monai_cnnprimer.dicom.results.model import Model

KIND = "report"
SCHEME = "99CNNPRIMER"
FINDINGS = {"pneumonia": Code("233604007", "SCT", "Pneumonia")}
"""Coded findings by their name; any other name gets a code of the private scheme."""
_PLAIN_CHEST = Code("399208008", "SCT", "Plain X-ray of chest")
_CALL = Code("operating-point", SCHEME, "Call at the operating point")
_PRESENT, _ABSENT = Code("52101004", "SCT", "Present"), Code("2667000", "SCT", "Absent")


def structured_report(
    source: Dataset,
    scores: Mapping[str, float],
    operating_point: Mapping[str, Any],
    model: Model,
    *,
    hashes: Mapping[str, str] | None = None,
    made_at: datetime | None = None,
) -> Dataset:
    """What the model says of an image, as a measurement report that a PACS can search.

    A group for each finding holds its probability, and whether the operating point calls it present or absent. The
    algorithm's parameters are the operating point and the hashes; the observer is a device.

    Args:
        source: header of the radiograph.
        scores: finding to its probability.
        operating_point: its `id` and `threshold`: the probability from which a finding is called present.
        model: what gave the scores.
        hashes: further hashes to state, name to value (of the manifest, of the operating point).
        made_at: as in `secondary_capture`.

    Raises:
        ValueError: no score, or one that is no probability.
        DicomRefused: the source cannot be referred to.
    """
    if not scores or not all(0 <= value <= 1 for value in scores.values()):
        raise ValueError("a report needs scores that are probabilities, from 0 to 1")
    image = referenced(source)
    algorithm = AlgorithmIdentification(
        name=model.name, version=model.version, parameters=_parameters(operating_point, model, hashes or {})
    )
    threshold = float(operating_point["threshold"])
    groups = [_group(name, value, threshold, algorithm, image, model) for name, value in scores.items()]
    device = DeviceObserverIdentifyingAttributes(
        uid=uid("device", *model), name=RESEARCH_ONLY, manufacturer_name=PACKAGE, model_name=model.name
    )
    report = MeasurementReport(
        observation_context=ObservationContext(observer_device_context=ObserverContext(codes.DCM.Device, device)),
        procedure_reported=_PLAIN_CHEST,
        imaging_measurements=groups,
    )
    with refusing_faults():
        result = ComprehensiveSR(
            evidence=[image],
            content=report[0],
            is_complete=True,
            is_final=False,
            **series_of(source, model, KIND),
        )
        return finished(result, source, model, KIND, made_at)


def _parameters(point: Mapping[str, Any], model: Model, hashes: Mapping[str, str]) -> list[str]:
    stated = {
        "operating point": point["id"],
        "threshold": f"{float(point['threshold']):.6g}",
        "weights SHA-256": model.weights_sha256,
        "transforms SHA-256": model.transforms_sha256,
        **hashes,
        "intended use": RESEARCH_ONLY,
    }
    return [f"{name}: {value}" for name, value in stated.items()]


def _group(
    name: str, probability: float, threshold: float, algorithm: AlgorithmIdentification, image: Dataset, model: Model
) -> MeasurementsAndQualitativeEvaluations:
    finding = FINDINGS.get(name.lower()) or Code(name.lower().replace(" ", "-")[:16], SCHEME, name[:64])
    return MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(
            uid=uid("tracking", image.SOPInstanceUID, *model, name), identifier=f"{name}, research only"
        ),
        finding_type=CodedConcept(*finding[:3]),
        algorithm_id=algorithm,
        measurements=[Measurement(name=codes.DCM.Probability, value=round(probability, 6), unit=codes.UCUM.NoUnits)],
        qualitative_evaluations=[
            QualitativeEvaluation(
                CodedConcept(*_CALL[:3]), CodedConcept(*(_PRESENT if probability >= threshold else _ABSENT)[:3])
            )
        ],
        source_images=[SourceImageForMeasurementGroup(image.SOPClassUID, image.SOPInstanceUID)],
    )
