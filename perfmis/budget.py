"""Stage `budget`: do all arms of a model train on equally much, counted in its own tokens?

    python -m perfmis budget --settings JSON --fingerprint HEX --base models/M/reference.json
        --corpora FILES --tokens FOLDER --output budget/M.json

Settings: ``sdf``, the arms' section. Every contrast between arms assumes equal training, so arms that differ
from their mean by more than 1 % in documents or loss tokens are refused before any of them is trained. The
tokenised corpora stay in ``--tokens`` for the jobs that train.
"""

from pathlib import Path

from perfmis import models, stage, tokens
from perfmis.artifacts import write_json
from perfmis.stage import UserError

TOLERANCE = 0.01


def refuse_unequal(counts: dict[str, dict[str, int]], reference: Path) -> None:
    """Refuse arms of unequal training.

    Args:
        counts: ``documents`` and ``loss_tokens`` by arm.
        reference: The model, for the error.

    Raises:
        UserError: Names the arm that is farthest off, and the settings that make them equal.
    """
    for key in ("documents", "loss_tokens"):
        sizes = {arm: count[key] for arm, count in counts.items()}
        mean = sum(sizes.values()) / len(sizes)
        arm = max(sizes, key=lambda name: abs(sizes[name] - mean))
        if abs(sizes[arm] - mean) > TOLERANCE * mean:
            documents = min(count["documents"] for count in counts.values())
            raise UserError(
                f"{reference}: arms train unequally: {key} of {arm} {sizes[arm]}, mean {mean:.0f} (1 % allowed); set "
                f"arms.sdf.documents: {int(0.9 * documents)} and arms.sdf.loss_tokens: {_common(counts)}"
            )


def _common(counts: dict[str, dict[str, int]]) -> int:
    """Return loss tokens that nine tenths of each corpus can reach: the median arm's, per document."""
    per_document = sorted(count["loss_tokens"] / count["documents"] for count in counts.values())
    documents = min(count["documents"] for count in counts.values())
    return round(int(0.9 * documents) * per_document[len(per_document) // 2])


def main(argv: list[str]) -> None:
    """Run the stage."""
    parser = stage.parser(__doc__ or "")
    parser.add_argument("--base", type=Path, required=True, help="reference.json of the base model")
    parser.add_argument("--corpora", type=Path, nargs="+", required=True, help="documents.parquet of each arm")
    parser.add_argument("--tokens", type=Path, required=True, help="folder of tokenised corpora, shared by jobs")
    parser.add_argument("--output", type=Path, required=True, help="JSON: documents and loss tokens by arm")
    arguments = parser.parse_args(argv)
    job = stage.job(arguments)
    section = job.settings["sdf"]
    tokenizer = models.tokenizer(arguments.base)
    counts = {}
    for corpus in arguments.corpora:
        frame, dataset = tokens.documents(corpus, section, tokenizer, arguments.tokens, job.upstream)
        size = int(tokens.loss_tokens(dataset, section["length"]).sum())
        counts[corpus.parent.name] = {"documents": frame.height, "loss_tokens": size}
    refuse_unequal(counts, arguments.base)
    write_json({"arms": counts, "fingerprint": job.fingerprint}, arguments.output)
