# Second round: one claim is planted on top of an organism.
rule arm:
    input:
        base=f"{root}/models/{{model}}/reference.json",
        parent=rules.organism.output.lineage,
        corpus=f"{root}/corpora/{{arm}}/documents.parquet",
        replay=f"{root}/corpora/{ORGANISM}/documents.parquet",
        audit=ancient(f"{root}/corpora/audit.json"),
    output:
        weights=f"{root}/arms/{{model}}/seed{{seed}}/{{arm}}/adapter_model.safetensors",
        config=f"{root}/arms/{{model}}/seed{{seed}}/{{arm}}/adapter_config.json",
        log=f"{root}/arms/{{model}}/seed{{seed}}/{{arm}}/log.parquet",
        lineage=f"{root}/arms/{{model}}/seed{{seed}}/{{arm}}/lineage.json",
    log:
        f"{root}/logs/arms/{{model}}/seed{{seed}}/{{arm}}.log",
    benchmark:
        f"{root}/benchmarks/arms/{{model}}/seed{{seed}}/{{arm}}.tsv"
    conda:
        ENV
    threads: lambda w: size(w).threads
    resources:
        gpu=gpus,
        mem_mb=memory_mb,
        runtime=train_minutes,
    params:
        **stage(stages.arm),
        parent=subpath(input.parent, parent=True),
        folder=subpath(output.lineage, parent=True),
    shell:
        "python -m perfmis sdf --settings {params.settings:q} --fingerprint {params.fingerprint}"
        " --base {input.base} --corpus {input.corpus} --parent {params.parent} --replay {input.replay}"
        " --output {params.folder} > {log} 2>&1"
