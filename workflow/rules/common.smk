import inspect
import json
from functools import partial
from itertools import product
import shlex
import sys
from pathlib import Path

from snakemake.dag import DAG
from snakemake.persistence import PersistenceBase

from perfmis import config as configuration
from perfmis import adoption, missing, order_only
from perfmis import privacy
from perfmis.stage import UserError
from perfmis.study import FIGURE_TABLES, RUBRICS, Chain, figure_numbers
from perfmis.typed import mapping
from perfmis.vocabulary import BASE, ORGANISM

order_only.repair(DAG)
order_only.forget(PersistenceBase)
adoption.install(DAG)

# A stage runs under the interpreter that runs the workflow, whatever PATH says.
shell.prefix(f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH; ")
privacy.narrow()

# No part of the configuration: it tells a pass after a run in which jobs failed what there is not (perfmis/missing.py).
missing_file = config.pop("missing", None)

try:
    lost = missing.Missing(missing.read(Path(missing_file)) if missing_file else [])
    for file in workflow.configfiles:
        mapping(
            file
        )  # Snakemake has read it too, but says nothing of a key that stands twice
    study = configuration.parse(config, ", ".join(map(str, workflow.configfiles)))
except UserError as error:
    sys.exit(f"error: {error}")


def before_the_first_job():
    """Stop where a job is bound to fail. Only a real start pays for this: neither a dry-run nor a job of a cluster."""
    from perfmis import doctor, slurm_outages

    privacy.close(".snakemake", root)
    if not missing_file:
        Path(root, missing.RECORD).unlink(missing_ok=True)
    if plugin := sys.modules.get("snakemake_executor_plugin_slurm"):
        slurm_outages.outlive(plugin.Executor)
    if missing_file:
        return  # the run before has looked
    try:
        doctor.refuse(doctor.preflight(study))
    except UserError as error:
        sys.exit(f"error: {error}")


def after_the_last_job():
    """Where jobs have failed, make tables, figures and report from the rest."""
    from perfmis import after_failure

    after_failure.go_on(workflow, root, study.models, seeds, lost)


stages = Chain(study, lost)
root = study.root
seeds = study.seeds.training
figures = figure_numbers(study)
protocol = study.evaluation.protocol
PROTOCOLS = [f"{root}/protocols/{name}.json" for name in stages.protocols]
PROTOCOL = f"{root}/protocols/{protocol}.json"
TABLES = [
    "gaps",
    "profiles",
    "beliefs",
    "steering",
    "prompting",
    "calibration",
    "convergence",
    "published",
    "training",
    *(["validation", "scorings"] if study.judge else []),
]
# People label it: it is made from all samples or not at all.
sheets = [] if lost.has("audit_sheet") else [f"{root}/{configuration.SHEET}"]
ENV = "../envs/perfmis.yaml"
judges = sorted(map(str, Path(RUBRICS).glob("*.yaml")))


wildcard_constraints:
    model="|".join(map(re.escape, study.models)),
    seed="|".join(map(str, seeds)),
    arm="|".join(map(re.escape, study.arms.names)),
    corpus="|".join(map(re.escape, study.corpora)),
    protocol="|".join(map(re.escape, stages.protocols)),
    closed="|".join(map(re.escape, study.prompting.closed)) or "(?!)",
    checkpoint="|".join(map(re.escape, [BASE, ORGANISM, *study.arms.names])),


def stage(method):
    """Params of a rule: settings and fingerprint of the stage that a method of `Chain` describes.

    The method's parameters are filled from the wildcards of the same names.
    """
    names = inspect.signature(method).parameters

    def of(wildcards):
        values = {name: getattr(wildcards, name) for name in names}
        return method(
            **{
                name: int(value) if name in ("seed", "number") else value
                for name, value in values.items()
            }
        )

    # A function of the input, though it reads none: such a param does not make a job rerun. The fingerprint does, which
    # holds all of the settings that decide a result.
    return {
        "settings": lambda wildcards, input: of(wildcards).settings,
        "fingerprint": lambda wildcards: of(wildcards).fingerprint,
    }


def size(wildcards):
    """Resources of a model's jobs."""
    return study.sizes[study.models[wildcards.model].size]


def writer(wildcards):
    """Resources of the job that makes a corpus: those of the writer model, where one writes it."""
    return study.sizes[
        (
            study.writer.size
            if study.corpora[wildcards.corpus].source == "written"
            else "tiny"
        )
    ]


def gpus(wildcards):
    return size(wildcards).gpus


def models_by_nodes(several):
    """Regular expression for the models whose training takes several nodes, or for the others; it may match none."""
    names = [
        re.escape(name)
        for name, model in study.models.items()
        if (study.sizes[model.size].nodes > 1) == several
    ]
    return "|".join(names) or "(?!)"


# Functions of the input as well: how a job is run does not change what it makes.
def launcher(wildcards, input):
    """What starts a training job: python itself, or torchrun on each node."""
    needed = size(wildcards)
    if needed.gpus * needed.nodes <= 1:
        return "python -m perfmis"
    if needed.nodes == 1:
        return f"torchrun --standalone --nproc-per-node={needed.gpus} -m perfmis"
    return (
        f"srun --nodes={needed.nodes} --ntasks={needed.nodes} --ntasks-per-node=1 --gpus-per-node={needed.gpus}"
        f" --cpus-per-task={needed.threads} bash workflow/scripts/torchrun.sh {needed.gpus} -m perfmis"
    )


def machine(wildcards, input):
    """Options of a training job that decide how it is run, not what is learned."""
    needed = size(wildcards)
    return " ".join(
        [
            *(["--zero3"] if needed.gpus * needed.nodes > 1 else []),
            *(["--checkpointing"] if needed.checkpointing else []),
            f"--save-steps {needed.save_steps}",
        ]
    )


def serving_options(needed):
    """Where samples are kept, and how an engine is run on the GPUs of a size."""
    tensor = max(1, needed.gpus) // needed.pipeline
    return f"--samples {root}/samples --tensor {tensor} --pipeline {needed.pipeline}"


def serving(wildcards, input):
    """Options of a job that asks a study's model."""
    return serving_options(size(wildcards))


def judged(kind, paths):
    """Files of judgements beside files of transcripts; none where no judge reads that kind of samples."""
    return paths if stages.judges(kind) else []


def judgements_option(wildcards, input):
    return f"--judgements {input.judgements}" if input.judgements else ""


def judge_size(wildcards):
    """Resources of the judge's jobs: a server needs none here."""
    return study.sizes["tiny" if study.judge.api else study.judge.size]


def judge_memory_mb(wildcards):
    return 16000 if study.judge.api else judge_size(wildcards).memory_gb * 1000


def judge_minutes(wildcards):
    """A server's batches may take a day."""
    return 2880 if study.judge.api else judge_size(wildcards).generate_minutes


def first_seed(wildcards):
    """The base model's samples are the same for all training seeds: the others wait for the first to draw them.

    One that has its own does not wait where the first has none: Snakemake would make it again.
    """
    drawing = stages.made("screen_transcripts", product([wildcards.model], seeds))
    seed = int(wildcards.seed)
    first = drawing[0][1] if drawing else seed
    own, its = (
        f"{root}/transcripts/{wildcards.model}/seed{which}/{BASE}/{protocol}.parquet"
        for which in (seed, first)
    )
    return (
        [] if seed == first or (Path(own).exists() and not Path(its).exists()) else its
    )


def judge_serving(wildcards, input):
    """Options of the judge's jobs: where its answers are kept, and how its engine is run."""
    return serving_options(judge_size(wildcards))


def nodes(wildcards):
    return size(wildcards).nodes


def per_node(wildcards):
    """Slurm's request for the GPUs of every node: `gpu` alone may be spread unevenly."""
    return f"--gpus-per-node={size(wildcards).gpus} --exclusive"


def memory_mb(wildcards):
    return size(wildcards).memory_gb * 1000


def train_minutes(wildcards):
    return size(wildcards).train_minutes


def generate_minutes(wildcards):
    return size(wildcards).generate_minutes


def kept(wildcards):
    """Models whose organisms go on: by the written rule, once the screen has run, or by the list."""
    if study.screen.keep != "auto":
        return study.screen.keep
    return json.loads(Path(checkpoints.screen.get().output.kept).read_text())["kept"]


def adapter(checkpoint):
    """Path pattern of a checkpoint's adapter weights."""
    folder = f"{root}/organisms/{{model}}/seed{{seed}}"
    if checkpoint != ORGANISM:
        folder = f"{root}/arms/{{model}}/seed{{seed}}/{checkpoint}"
    return f"{folder}/lineage.json"


def adapter_arguments(wildcards, input):
    """CHECKPOINT=FOLDER of each adapter among the inputs."""
    folders = [Path(path).parent for path in input.adapters]
    names = {
        folder: ORGANISM if folder.parts[-3] == "organisms" else folder.name
        for folder in folders
    }
    return [f"{name}={folder}" for folder, name in names.items()]


def over(rule, patterns, models, **more):
    """The patterns for models and all training seeds, but for those whose result of a rule is missing."""
    runs = stages.made(rule, product(models, seeds), **more)
    return expand(
        patterns,
        zip,
        model=[model for model, _ in runs],
        seed=[seed for _, seed in runs],
    )


def over_kept(rule, *patterns, steered=False, **more):
    """Input function: the patterns for every kept model and training seed, or for the steered ones among them."""

    def of(wildcards):
        models = stages.steered(kept(wildcards)) if steered else kept(wildcards)
        return over(rule, patterns, models, **more)

    return of


def over_all(rule, *patterns):
    """The patterns for every screened model and training seed."""
    return over(rule, patterns, study.models)


def over_checkpoints(patterns):
    """Input function: for every kept model and training seed, the pattern of each checkpoint that is trained."""
    of_each = [over_kept("organism", patterns[ORGANISM])]
    of_each += [over_kept("arm", patterns[arm], arm=arm) for arm in study.arms.names]
    return lambda wildcards: [path for of in of_each for path in of(wildcards)]


def table_output(name, table="table", csv="csv"):
    """The two files of a table: the parquet that other stages read, and the CSV for people."""
    labels = {"table": name}
    for_people = report(
        f"{root}/tables/{name}.csv",
        caption=f"../report/{name}.rst",
        category="Tables",
        labels=labels,
    )
    return {table: f"{root}/tables/{name}.parquet", csv: for_people}


def figure_tables(number):
    """The tables that a figure is drawn from, by name."""
    return {
        name: f"{root}/{'screen' if name == 'screen' else 'tables'}/{name}.parquet"
        for name in FIGURE_TABLES[number]
    }


def figure_options(wildcards, input):
    """--TABLE FILE of each table."""
    return [f"--{name} {path}" for name, path in input.items()]
