# SPDX-License-Identifier: Apache-2.0
"""`python -m neuralforge` is the command."""

import sys

from .cli import main

sys.exit(main())
