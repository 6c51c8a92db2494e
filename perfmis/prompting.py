"""Stage `prompting`: the arms' claims as snippets in the context, on base, organism and arms.

    python -m perfmis prompting --settings JSON --fingerprint HEX --base models/M/reference.json
        --requests requests/requests.parquet --protocols FILE ... --snippets FILE
        --adapters CHECKPOINT=FOLDER ... --samples FOLDER --output transcripts.parquet

Base models know nothing of the tiers, so they are prompted under ``base_protocol``, which states the facts;
organisms and arms under ``protocol``. Each checkpoint is also asked without a snippet (``none``), in the
same run.
"""

from pathlib import Path

from perfmis import protocols, stage
from perfmis.artifacts import read_parquet, write_parquet
from perfmis.generation import Question, ask
from perfmis.subject import parser, subject
from perfmis.typed import read_yaml
from perfmis.vocabulary import BASE, NO_SNIPPET


def main(argv: list[str]) -> None:
    """Run the stage."""
    options = parser(__doc__ or "")
    options.add_argument("--requests", type=Path, required=True, help="requests.parquet")
    options.add_argument("--protocols", type=Path, nargs="+", required=True, help="protocol files")
    options.add_argument("--snippets", type=Path, required=True, help="snippets of the world")
    options.add_argument("--output", type=Path, required=True, help="transcripts.parquet")
    arguments = options.parse_args(argv)
    job = stage.job(arguments)
    settings = job.settings
    requests = read_parquet([arguments.requests], job.upstream).head(settings["requests"]).to_dicts()
    known = {path.stem: protocols.load(path) for path in arguments.protocols}
    texts = read_yaml(arguments.snippets) or {}
    if absent := [name for name in settings["snippets"] if name not in texts]:
        raise stage.UserError(f"{arguments.snippets}: no text of {absent[0]}; add it")
    snippets = {NO_SNIPPET: None, **texts}
    questions = []
    for checkpoint in settings["checkpoints"]:
        name = settings["base_protocol"] if checkpoint == BASE else settings["protocol"]
        questions += [
            Question(
                request,
                known[name],
                tier,
                checkpoint,
                seed,
                snippets[snippet],
                None,
                {"protocol": name, "snippet": snippet},
            )
            for snippet in (NO_SNIPPET, *settings["snippets"])
            for request in requests
            for tier in settings["tiers"]
            for seed in settings["seeds"]
        ]
    write_parquet(ask(subject(arguments, settings), questions, settings), arguments.output, job.fingerprint)
