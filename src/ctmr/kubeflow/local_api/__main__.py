"""``python -m ctmr.kubeflow.local_api --port N``: the local runner as a process."""

import sys

from ctmr.kubeflow.local_api.server import main

sys.exit(main())
