# SPDX-License-Identifier: Apache-2.0
"""Two run directories over the same cases: who is right where, how far they agree, and whether for the same reason."""

from monai_cnnprimer.validate.compare.comparison import Comparison, Settings, compare_runs

__all__ = ["Comparison", "Settings", "compare_runs"]
