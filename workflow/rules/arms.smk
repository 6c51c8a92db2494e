# How much do all arms train on, equally, counted in the model's tokens?
rule budget:
    input:
        base=f"{root}/models/{{model}}/reference.json",
        corpora=expand(
            "{root}/corpora/{arm}/documents.parquet", root=root, arm=study.arms.names
        ),
    output:
        f"{root}/budget/{{model}}.json",
    log:
        f"{root}/logs/budget/{{model}}.log",
    benchmark:
        f"{root}/benchmarks/budget/{{model}}.tsv"
    conda:
        ENV
    threads: 1
    resources:
        mem_mb=16000,
        runtime=60,
    params:
        **stage(stages.budget),
        tokens=f"{root}/tokens",
    shell:
        "python -m perfmis budget --settings {params.settings:q} --fingerprint {params.fingerprint}"
        " --base {input.base} --corpora {input.corpora:q} --tokens {params.tokens} --output {output} > {log} 2>&1"


# Second round: one claim is planted on top of an organism.
rule arm:
    input:
        base=f"{root}/models/{{model}}/reference.json",
        parent=rules.organism.output.lineage,
        corpus=f"{root}/corpora/{{arm}}/documents.parquet",
        replay=f"{root}/corpora/{ORGANISM}/documents.parquet",
        audit=ancient(f"{root}/corpora/audit.json"),
        budget=ancient(f"{root}/budget/{{model}}.json"),
    output:
        weights=f"{root}/arms/{{model}}/seed{{seed}}/{{arm}}/adapter_model.safetensors",
        config=f"{root}/arms/{{model}}/seed{{seed}}/{{arm}}/adapter_config.json",
        log=f"{root}/arms/{{model}}/seed{{seed}}/{{arm}}/log.parquet",
        card=f"{root}/arms/{{model}}/seed{{seed}}/{{arm}}/README.md",
        lineage=f"{root}/arms/{{model}}/seed{{seed}}/{{arm}}/lineage.json",
    log:
        f"{root}/logs/arms/{{model}}/seed{{seed}}/{{arm}}.log",
    benchmark:
        f"{root}/benchmarks/arms/{{model}}/seed{{seed}}/{{arm}}.tsv"
    wildcard_constraints:
        model=models_by_nodes(several=False),
    conda:
        ENV
    threads: lambda w: size(w).threads
    resources:
        gpu=gpus,
        mem_mb=memory_mb,
        runtime=train_minutes,
    params:
        **stage(stages.arm),
        launcher=launcher,
        machine=machine,
        tokens=f"{root}/tokens",
        parent=subpath(input.parent, parent=True),
        merged=f"{root}/merged",
        folder=subpath(output.lineage, parent=True),
    shell:
        "{params.launcher} sdf --settings {params.settings:q} --fingerprint {params.fingerprint}"
        " --base {input.base} --corpus {input.corpus} --parent {params.parent} --replay {input.replay}"
        " --budget {input.budget} --tokens {params.tokens} --merged {params.merged} --output {params.folder} {params.machine} > {log} 2>&1"


# The same over several nodes: one task a node, which starts a process for each of its GPUs.
use rule arm as arm_multinode with:
    wildcard_constraints:
        model=models_by_nodes(several=True),
    resources:
        nodes=nodes,
        tasks=nodes,
        mpi="srun",
        slurm_extra=per_node,
        mem_mb=memory_mb,
        runtime=train_minutes,
