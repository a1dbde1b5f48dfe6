# SPDX-License-Identifier: Apache-2.0
"""Before a study: which sizes of finding a network at this resolution can hold, by its geometry and by experiment."""
