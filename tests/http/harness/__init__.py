# SPDX-License-Identifier: Apache-2.0
"""What the HTTP tests share: the program under test, an HTTP client, raw sockets, shapes, models."""
