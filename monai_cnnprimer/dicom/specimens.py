# SPDX-License-Identifier: Apache-2.0
"""One tiny radiograph in every transfer syntax that this package reads, to see whether this machine decodes it."""

from __future__ import annotations

from base64 import b64decode
from importlib.metadata import version
from io import BytesIO

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from monai_cnnprimer.dicom.header import DicomRefused, read_header, receipt
from monai_cnnprimer.dicom.pixels import DECODERS, show

RAMP = np.arange(64).reshape(8, 8) * 3 + 20
UNCOMPRESSED = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian)
# The ramp as 8 bits (JPEG baseline), else 16 times as steep as 12 bits; lossy ones are off by 16 of 4,096 at most. Made
# once: a codec that cannot encode here may still decode.
STREAMS = {
    (JPEGBaseline8Bit,): (
        "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAIBAQEBAQIBAQECAgICAgQDAgICAgUEBAMEBgUGBgYFBgYGBwkIBgcJBwYGCAsICQoKCgoKBggL"
        "DAsKDAkKCgr/wAALCAAIAAgBAREA/8QAHwAAAQUBAQEBAQEAAAAAAAAAAAECAwQFBgcICQoL/8QAtRAAAgEDAwIEAwUFBAQAAAF9AQIDAAQR"
        "BRIhMUEGE1FhByJxFDKBkaEII0KxwRVS0fAkM2JyggkKFhcYGRolJicoKSo0NTY3ODk6Q0RFRkdISUpTVFVWV1hZWmNkZWZnaGlqc3R1dnd4"
        "eXqDhIWGh4iJipKTlJWWl5iZmqKjpKWmp6ipqrKztLW2t7i5usLDxMXGx8jJytLT1NXW19jZ2uHi4+Tl5ufo6erx8vP09fb3+Pn6/9oACAEB"
        "AAA/AOJ8Ef8ABEr7n/FI/wDkD/61f//Z"
    ),
    (JPEGExtended12Bit,): (
        "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAIBAQEBAQIBAQECAgICAgQDAgICAgUEBAMEBgUGBgYFBgYGBwkIBgcJBwYGCAsICQoKCgoKBggL"
        "DAsKDAkKCgr/wQALDAAIAAgBAREA/8QAFAABAAAAAAAAAAAAAAAAAAAACv/EABwQAAAGAwAAAAAAAAAAAAAAAAAKDSo2R1Nkcf/aAAgBAQAA"
        "PwAT5JREqoi0jwUlzXH/2Q=="
    ),
    (
        JPEGLossless,
        JPEGLosslessSV1,
    ): (
        "/9j/4AAQSkZJRgABAQAAAQABAAD/wwALDAAIAAgBAREA/8QAFgABAQEAAAAAAAAAAAAAAAAABgkL/9oACAEBAAEAAMT9gwYMGDBhYBgwYMGD"
        "BhYBgwYMGDBhYBgwYMGDBhYBgwYMGDBhYBgwYMGDBhYBgwYMGDBhYBgwYMGDBh//2Q=="
    ),
    (JPEGLSLossless,): (
        "/9j/6AAgU1BJRkYAAgAAAQAAAAgAAAAIChAGAQAAASwAAAEs/+gACAAAAAH/2P/3AAsQAAgACAEBEQD/+AANAf//ABIAQwEUAED/2gAIAQEA"
        "AAAAZ/i/F2W5Zq9VqfAIwRelyWqxVowb+qlSqFOpmVF7fmRjYmFgX0ub6vLq4trSylpfFhXVlVUVFYXtTUmTFiwVZemC9evXLlUA/9k="
    ),
    (JPEGLSNearLossless,): (
        "/9j/6AAgU1BJRkYAAgAAAQAAAAgAAAAIChAGAQAAASwAAAEs/+gACAAAAAH/2P/3AAsQAAgACAEBEQD/+AANAf//ABgATQEiAED/2gAIAQEA"
        "AgAAX+JyMjRo0Z+aiUpJUqVCKZilQwwuwkk1dddZdZJJiyyqyrVJMaxrGMUkxi2LYtQS2LWpa1D/2Q=="
    ),
    (JPEG2000Lossless,): (
        "/0//UQApAAAAAAAIAAAACAAAAAAAAAAAAAAACAAAAAgAAAAAAAAAAAABCwEB/1IADAAAAAEAAAQEAAH/XAAEQGD/ZAAlAAFDcmVhdGVkIGJ5"
        "IE9wZW5KUEVHIHZlcnNpb24gMi41LjT/kAAKAAAAAABLAAH/k8/k6BDcQiYb3eU2NLlM+SiIwBYa1ieAkDvby6rh4L2ZJLaKxTfkNupyPmg9"
        "zlHjwvCDBsNhsQddFvoh/3//2Q=="
    ),
    (JPEG2000,): (
        "/0//UQApAAAAAAAIAAAACAAAAAAAAAAAAAAACAAAAAgAAAAAAAAAAAABCwEB/1IADQECAAEAAAQEAACI/1wABUJgAP9kACUAAUNyZWF0ZWQg"
        "YnkgT3BlbkpQRUcgdmVyc2lvbiAyLjUuNP+QAAoAAAAAAD8AAf+Tz6VwENxCJhvd5TY0uUz5KIjAFhrWJ4CQO9vLquHgvZkktorFN+Q26nI+"
        "aD3OUePC8P/Z"
    ),
    (
        HTJ2KLossless,
        HTJ2KLosslessRPCL,
    ): (
        "/0//UQApQAAAAAAIAAAACAAAAAAAAAAAAAAACAAAAAgAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB/1wAEyCIkJCQkJCQ"
        "kJCQkJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAFkAAf+TwAAmy/UFB3QAAADAABLAABMAtAGHdACu/QMHdADAABNA"
        "ABOAVusBAnQAvvb1AKNUAMAAKiAAFWCe53mqcIJ1AP768+fvwEIB7LYA/9k="
    ),
    (HTJ2K,): (
        "/0//UQApQAAAAAAIAAAACAAAAAAAAAAAAAAACAAAAAgAAAAAAAAAAAABDwEB/1AACAACAAAAKv9SAAwAAgABAAUEBEAA/1wAIyK3GLbqtuq2"
        "vK8ArwCu4qdMp0ynZJADkAOQRpfSl9KXYf9kABcAAU9wZW5KUEggVmVyIDAuMjYuMy7/kAAKAAAAAABzAAH/k8AAAThFe+AIB3QAAADAAATQ"
        "AAEwlP0Ch3QAuOwEB3QAwAAVEAAFUAQEbGwAwrQAMMAbDODtAYa0AMAAFfAABazWngcKWfs8EPQyS8qbdgDAQCBwEaeLcLqI0yJOAhAKboAA"
        "ajkA/9k="
    ),
    (RLELossless,): (
        "AgAAAEAAAABoAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAP0B/QL/AvwDAAT9BP0F/wX8"
        "BgAH/Qf9CP8I/AkACv0K/Qv/C/wMAA0HQHCg0AAwYJAHwPAgUICw4BAHQHCg0AAwYJAHwPAgUICw4BAHQHCg0AAwYJAHwPAgUICw4BAHQHCg"
        "0AAwYJAHwPAgUICw4BA="
    ),
}
SYNTAXES = (*UNCOMPRESSED, *(syntax for syntaxes in STREAMS for syntax in syntaxes))


def specimen(syntax: str) -> bytes:
    """The file of `RAMP` in a transfer syntax of `SYNTAXES`."""
    bits = 8 if syntax == JPEGBaseline8Bit else 12
    cells = RAMP.astype("u1") if bits == 8 else (RAMP * 16).astype(">u2" if syntax == ExplicitVRBigEndian else "<u2")
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = DigitalXRayImageStorageForPresentation, "1.2.3"
    dataset.Modality, dataset.PatientOrientation = "DX", ["L", "F"]
    dataset.PhotometricInterpretation, dataset.SamplesPerPixel = "MONOCHROME2", 1
    dataset.Rows, dataset.Columns = RAMP.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = cells.itemsize * 8, bits, bits - 1
    dataset.PixelRepresentation = 0
    stream = next((text for syntaxes, text in STREAMS.items() if syntax in syntaxes), None)
    dataset.PixelData = cells.tobytes() if stream is None else encapsulate([b64decode(stream)])
    dataset["PixelData"].VR = "OW" if stream is None else "OB"
    dataset["PixelData"].is_undefined_length = stream is not None
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    file = BytesIO()
    pydicom.dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


def decoder(syntax: str) -> str:
    """What decodes a transfer syntax of `SYNTAXES`, with its version."""
    if syntax in UNCOMPRESSED:
        return f"this package, pydicom {version('pydicom')}"
    function = "dicomrle_decode" if syntax == RLELossless else DECODERS[syntax]
    return f"imagecodecs {version('imagecodecs')}, {function}"


def fault(syntax: str) -> str:
    """Why a transfer syntax is not read rightly here; "" where it is.

    Example:
        >>> fault(JPEGLSLossless)
        ''
    """
    file = BytesIO(specimen(syntax))
    try:
        dataset = read_header(file)
        receipt(dataset)
        image = show(file, dataset).image
    except DicomRefused as refused:
        return str(refused)
    expected = RAMP / 255 if syntax == JPEGBaseline8Bit else RAMP * 16 / 4095
    return "" if float(np.abs(image - expected).max()) < 0.005 else "decoded to other values than were encoded"
