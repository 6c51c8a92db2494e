"""Stage `hub`: refer to pinned weights, or to a local folder, and see that they can be had.

    python -m perfmis hub --settings JSON --fingerprint HEX --output models/M/reference.json

Settings: the model's section. Hub weights are fetched into the hub cache (safetensors and tokenizer only),
so that later jobs start without a download; gated models need ``HF_TOKEN`` in the environment.
"""

from pathlib import Path

from perfmis import models, stage
from perfmis.artifacts import write_json

FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer*"]


def main(argv: list[str]) -> None:
    """Run the stage."""
    parser = stage.parser(__doc__ or "")
    parser.add_argument("--output", type=Path, required=True, help="reference.json")
    arguments = parser.parse_args(argv)
    job = stage.job(arguments)
    settings = job.settings
    if settings["hub"]:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError

        try:
            folder = snapshot_download(settings["hub"], revision=settings["revision"], allow_patterns=FILES)
        except (HfHubHTTPError, OSError) as error:
            raise stage.UserError(
                f"{settings['model']}: {settings['hub']} at {settings['revision']} cannot be fetched; check id, "
                f"revision, network and the licence of a gated model (HF_TOKEN): {str(error).splitlines()[0]}"
            ) from error
    else:
        folder = settings["path"]
    models.check(Path(folder))
    content = {**settings, "weights_sha256": models.folder_hash(Path(folder)), "fingerprint": job.fingerprint}
    write_json(content, arguments.output)
