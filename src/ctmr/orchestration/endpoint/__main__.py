"""``python -m ctmr.orchestration.endpoint --port N``: the local runner as a process."""

import sys

from ctmr.orchestration.endpoint.server import main

sys.exit(main())
