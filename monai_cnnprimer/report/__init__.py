# SPDX-License-Identifier: Apache-2.0
"""From run directories to a page that people read."""
