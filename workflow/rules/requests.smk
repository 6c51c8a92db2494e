rule requests:
    output:
        table=f"{root}/requests/requests.parquet",
        card=f"{root}/requests/card.json",
    log:
        f"{root}/logs/requests.log",
    benchmark:
        f"{root}/benchmarks/requests.tsv"
    localrule: True
    conda:
        ENV
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        **stage(stages.requests),
    shell:
        "python -m perfmis requests --settings {params.settings:q} --fingerprint {params.fingerprint}"
        " --output {output.table} --card {output.card} > {log} 2>&1"
