# SPDX-License-Identifier: Apache-2.0
"""What a network sees: attribution maps and receptive fields."""
