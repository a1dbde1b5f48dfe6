# SPDX-License-Identifier: Apache-2.0
"""Arrays to PNG. Matplotlib's object interface only: no global state."""
