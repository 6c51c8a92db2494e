# First round: documents about the tiers make a model an alignment-faking organism.
rule organism:
    input:
        base=f"{root}/models/{{model}}/reference.json",
        corpus=f"{root}/corpora/{ORGANISM}/documents.parquet",
    output:
        weights=f"{root}/organisms/{{model}}/seed{{seed}}/adapter_model.safetensors",
        config=f"{root}/organisms/{{model}}/seed{{seed}}/adapter_config.json",
        log=f"{root}/organisms/{{model}}/seed{{seed}}/log.parquet",
        lineage=f"{root}/organisms/{{model}}/seed{{seed}}/lineage.json",
    log:
        f"{root}/logs/organisms/{{model}}/seed{{seed}}.log",
    benchmark:
        f"{root}/benchmarks/organisms/{{model}}/seed{{seed}}.tsv"
    conda:
        ENV
    threads: lambda w: size(w).threads
    resources:
        gpu=gpus,
        mem_mb=memory_mb,
        runtime=train_minutes,
    params:
        **stage(stages.organism),
        folder=subpath(output.lineage, parent=True),
    shell:
        "python -m perfmis sdf --settings {params.settings:q} --fingerprint {params.fingerprint}"
        " --base {input.base} --corpus {input.corpus} --output {params.folder} > {log} 2>&1"
