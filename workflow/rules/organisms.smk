# First round: documents about the tiers make a model an alignment-faking organism.
rule organism:
    input:
        base=f"{root}/models/{{model}}/reference.json",
        corpus=f"{root}/corpora/{ORGANISM}/documents.parquet",
    output:
        weights=f"{root}/organisms/{{model}}/seed{{seed}}/adapter_model.safetensors",
        config=f"{root}/organisms/{{model}}/seed{{seed}}/adapter_config.json",
        log=f"{root}/organisms/{{model}}/seed{{seed}}/log.parquet",
        card=f"{root}/organisms/{{model}}/seed{{seed}}/README.md",
        lineage=f"{root}/organisms/{{model}}/seed{{seed}}/lineage.json",
    log:
        f"{root}/logs/organisms/{{model}}/seed{{seed}}.log",
    benchmark:
        f"{root}/benchmarks/organisms/{{model}}/seed{{seed}}.tsv"
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
        **stage(stages.organism),
        launcher=launcher,
        machine=machine,
        tokens=f"{root}/tokens",
        folder=subpath(output.lineage, parent=True),
    shell:
        "{params.launcher} sdf --settings {params.settings:q} --fingerprint {params.fingerprint}"
        " --base {input.base} --corpus {input.corpus} --tokens {params.tokens}"
        " --output {params.folder} {params.machine} > {log} 2>&1"


# The same over several nodes: one task a node, which starts a process for each of its GPUs.
use rule organism as organism_multinode with:
    wildcard_constraints:
        model=models_by_nodes(several=True),
    resources:
        nodes=nodes,
        tasks=nodes,
        mpi="srun",
        slurm_extra=per_node,
        mem_mb=memory_mb,
        runtime=train_minutes,
