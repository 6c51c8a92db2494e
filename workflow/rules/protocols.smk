# How requests are put to a model, from the files of resources/protocols and the texts that they take from elsewhere.
rule protocol:
    input:
        lambda w: stages.protocol_files(w.protocol),
    output:
        f"{root}/protocols/{{protocol}}.json",
    log:
        f"{root}/logs/protocols/{{protocol}}.log",
    benchmark:
        f"{root}/benchmarks/protocols/{{protocol}}.tsv"
    localrule: True
    conda:
        ENV
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        **stage(stages.composition),
    shell:
        "python -m perfmis composition --settings {params.settings:q} --fingerprint {params.fingerprint}"
        " --files {input:q} --output {output} > {log} 2>&1"
