# SPDX-License-Identifier: Apache-2.0
"""Whether a model holds: statistics, sites, tracking."""
