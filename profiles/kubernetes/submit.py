"""Send one job of the study to Kubernetes and print its name there; snakemake calls this (profile.yaml).

python profiles/kubernetes/submit.py --rule organism --nodes 1 --gpus 8 --cpus 32 --memory-mb 800000
    --disk-mb 20000 --minutes 1440 SCRIPT
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

GPU = "nvidia.com/gpu"


def job(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the job of job.yaml, with its name, its command and what it asks for."""
    content: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("job.yaml").read_text())
    content["metadata"]["generateName"] = f"perfmis-{arguments.rule.replace('_', '-')}-"
    pod = content["spec"]["template"]["spec"]
    pod["activeDeadlineSeconds"] = (
        arguments.minutes * 60
    )  # the pod's, not the job's: that one counts waiting for a node
    # Kubernetes wants GPUs, which nobody may have more of than asked for, among the limits.
    limits = {"memory": f"{arguments.memory_mb}M", "ephemeral-storage": f"{arguments.disk_mb}M"}
    limits |= {GPU: str(arguments.gpus)} if arguments.gpus else {}
    (container,) = pod["containers"]
    container["command"] = ["/bin/sh", str(arguments.script)]
    container["resources"] = {"limits": limits, "requests": {**limits, "cpu": str(arguments.cpus)}}
    return content


def main() -> None:
    """Create the job."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rule", required=True, help="rule of the job, for its name")
    for name in ("nodes", "gpus", "cpus", "memory-mb", "disk-mb", "minutes"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("script", type=Path, help="what the job runs; a path on the shared volume")
    arguments = parser.parse_args()
    if arguments.nodes > 1:
        sys.exit("error: sizes: training over several nodes needs Slurm; set `nodes: 1` for the model's size")
    manifest = json.dumps(job(arguments))
    created = subprocess.run(["kubectl", "create", "-f", "-", "-o", "name"], input=manifest, text=True, check=False)
    sys.exit(created.returncode)


if __name__ == "__main__":
    main()
