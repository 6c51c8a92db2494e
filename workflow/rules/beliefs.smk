# Did each arm plant what it should, and nothing else: multiple-choice items by log-probability.
rule beliefs:
    input:
        base=f"{root}/models/{{model}}/reference.json",
        questions=stages.resource("beliefs"),
        protocol=PROTOCOL,
        adapters=[adapter(name) for name in [ORGANISM, *study.arms.names]],
    output:
        f"{root}/beliefs/{{model}}/seed{{seed}}.parquet",
    log:
        f"{root}/logs/beliefs/{{model}}/seed{{seed}}.log",
    benchmark:
        f"{root}/benchmarks/beliefs/{{model}}/seed{{seed}}.tsv"
    conda:
        ENV
    threads: lambda w: size(w).threads
    resources:
        gpu=gpus,
        mem_mb=memory_mb,
        runtime=generate_minutes,
    params:
        **stage(stages.beliefs),
        adapters=adapter_arguments,
        kept=f"{root}/samples/beliefs",
    shell:
        "python -m perfmis beliefs --settings {params.settings:q} --fingerprint {params.fingerprint}"
        " --base {input.base} --items {input.questions} --protocol {input.protocol}"
        " --adapters {params.adapters} --kept {params.kept} --output {output} > {log} 2>&1"
