# Documents that plant a claim, and the comparison of the corpora with each other.
rule corpus:
    input:
        lambda w: (
            [study.corpora[w.corpus].location]
            if study.corpora[w.corpus].source == "path"
            else []
        ),
    output:
        documents=f"{root}/corpora/{{corpus}}/documents.parquet",
        card=f"{root}/corpora/{{corpus}}/card.json",
    log:
        f"{root}/logs/corpora/{{corpus}}.log",
    benchmark:
        f"{root}/benchmarks/corpora/{{corpus}}.tsv"
    conda:
        ENV
    threads: lambda w: writer(w).threads
    resources:
        gpu=lambda w: writer(w).gpus,
        mem_mb=lambda w: writer(w).memory_gb * 1000,
        runtime=lambda w: writer(w).generate_minutes,
    params:
        **stage(stages.corpus),
    shell:
        "python -m perfmis corpora --settings {params.settings:q} --fingerprint {params.fingerprint}"
        " --output {output.documents} --card {output.card} > {log} 2>&1"


rule audit:
    input:
        documents=expand(
            f"{root}/corpora/{{corpus}}/documents.parquet",
            corpus=[ORGANISM, *study.arms.names],
        ),
        requests=rules.requests.output.table,
        protocols=PROTOCOLS,
    output:
        report=f"{root}/corpora/audit.json",
        table=f"{root}/corpora/audit.parquet",
    log:
        f"{root}/logs/corpora/audit.log",
    benchmark:
        f"{root}/benchmarks/corpora/audit.tsv"
    conda:
        ENV
    threads: 1
    resources:
        mem_mb=16000,
        runtime=60,
    params:
        **stage(stages.audit),
    shell:
        "python -m perfmis audit --settings {params.settings:q} --fingerprint {params.fingerprint}"
        " --documents {input.documents} --requests {input.requests} --protocols {input.protocols}"
        " --report {output.report} --table {output.table} > {log} 2>&1"
