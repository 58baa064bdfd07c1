"""What the pipeline asks of a cluster, apart from what it computes: caching, retries, accelerators, disks, secrets."""

from collections.abc import Mapping

from kfp import kubernetes
from kfp.dsl import PipelineTask

ACCELERATOR = "nvidia.com/gpu"
SECRET = "ctmr"
"""Kubernetes secret with the addresses and keys below; a key that it lacks is left unset."""
SECRET_KEYS = {
    "tracking_uri": "MLFLOW_TRACKING_URI",
    "tracking_username": "MLFLOW_TRACKING_USERNAME",
    "tracking_password": "MLFLOW_TRACKING_PASSWORD",
    "study_storage": "CTMR_STUDY_STORAGE",
    "aws_access_key_id": "AWS_ACCESS_KEY_ID",
    "aws_secret_access_key": "AWS_SECRET_ACCESS_KEY",
    "aws_endpoint_url": "AWS_ENDPOINT_URL",
}
HOME_CLAIM = "ctmr-home"
"""Volume claim (ReadWriteMany) behind CTMR_HOME of the image: checkpoints survive a lost pod."""
HOME_FOLDER = "/ctmr"

NEVER_CACHED = ("start", "create_study", "work_on_study", "reject", "register", "deploy")
"""start must see a moved branch and a new champion; the others change the world outside their output."""
TRAINS = ("work_on_study", "tune", "train", "evaluate")
RETRIED = {"fetch": 2, "work_on_study": 2, "tune": 1, "train": 2}
"""Reading and training go on where they stopped; nothing that registers or deploys is tried twice blindly."""
MEMORY = {"fetch": "4Gi", "validate": "4Gi", "preprocess": "16Gi", "tune": "16Gi", "train": "16Gi", "evaluate": "16Gi"}
SHARED_MEMORY = "2Gi"


def on_kubernetes(tasks: Mapping[str, PipelineTask]) -> None:
    """Apply the settings above to the pipeline's tasks.

    The dataset's revision and md5, and each stage's own recipe sections, are parameters of its task, so they are in
    Kubeflow's cache key already. Local runners ignore all of this but the retries.

    Parameters
    ----------
    tasks
        Component name → its task.
    """
    for name, task in tasks.items():
        if name in NEVER_CACHED:
            task.set_caching_options(enable_caching=False)
        if name in RETRIED:
            task.set_retry(RETRIED[name], backoff_duration="30s", backoff_factor=2.0)
        if name in MEMORY:
            task.set_memory_request(MEMORY[name])
        if name in TRAINS:
            task.set_accelerator_type(ACCELERATOR).set_accelerator_limit(1)
            kubernetes.empty_dir_mount(
                task, volume_name="shared-memory", mount_path="/dev/shm", medium="Memory", size_limit=SHARED_MEMORY
            )
        kubernetes.use_secret_as_env(task, SECRET, SECRET_KEYS, optional=True)
        kubernetes.mount_pvc(task, HOME_CLAIM, HOME_FOLDER)
