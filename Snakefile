# What drives alignment faking: the whole experiment, from corpora to figures. See README.md.
from snakemake.utils import min_version

min_version("9.27")

if not workflow.configfiles:

    configfile: "config/config.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/requests.smk"
include: "workflow/rules/protocols.smk"
include: "workflow/rules/corpora.smk"
include: "workflow/rules/models.smk"
include: "workflow/rules/organisms.smk"
include: "workflow/rules/screen.smk"
include: "workflow/rules/arms.smk"
include: "workflow/rules/transcripts.smk"
include: "workflow/rules/beliefs.smk"
include: "workflow/rules/steering.smk"
include: "workflow/rules/prompting.smk"
include: "workflow/rules/judging.smk"
include: "workflow/rules/tables.smk"
include: "workflow/rules/figures.smk"
include: "workflow/rules/page.smk"


onstart:
    before_the_first_job()


onerror:
    after_the_last_job()


report: f"{root}/report/story.rst"


rule all:
    default_target: True
    input:
        expand("{root}/tables/{table}.csv", root=root, table=TABLES),
        expand("{root}/figures/fig{number}.pdf", root=root, number=figures),
        f"{root}/report/story.rst",
        f"{root}/transcripts.html",
        judged("checkpoints", sheets),
