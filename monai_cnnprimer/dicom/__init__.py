# SPDX-License-Identifier: Apache-2.0
"""What a PACS export holds, and how its files become pixels."""
