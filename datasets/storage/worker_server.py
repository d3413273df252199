"""For the server that worker processes are forked from, which imports this file; nothing else may.

Until a worker has its own handling of errors, it has that of its server.
"""

from __future__ import annotations

import sys

from diveparse.datasets.storage.workers import print_error

sys.excepthook = print_error
