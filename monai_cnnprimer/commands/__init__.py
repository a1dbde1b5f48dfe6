# SPDX-License-Identifier: Apache-2.0
"""The commands of `cnnprimer`, one module a job; what is heavy is imported by the command that uses it."""
