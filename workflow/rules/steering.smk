# Vectors of the two concepts, in and out of context, and what an organism does when they are added.
rule vectors:
    input:
        base=f"{root}/models/{{model}}/reference.json",
        organism=rules.organism.output.lineage,
        requests=rules.requests.output.table,
        protocol=PROTOCOL,
        transcripts=f"{root}/transcripts/{{model}}/seed{{seed}}/{ORGANISM}/{protocol}.parquet",
        outcomes=f"{root}/outcomes/{{model}}/seed{{seed}}/{ORGANISM}/{protocol}.parquet",
        contrasts=stages.resource("contrasts"),
    output:
        vectors=f"{root}/vectors/{{model}}/seed{{seed}}/vectors.safetensors",
        report=f"{root}/vectors/{{model}}/seed{{seed}}/vectors.json",
    log:
        f"{root}/logs/vectors/{{model}}/seed{{seed}}.log",
    benchmark:
        f"{root}/benchmarks/vectors/{{model}}/seed{{seed}}.tsv"
    conda:
        ENV
    threads: lambda w: size(w).threads
    resources:
        gpu=gpus,
        mem_mb=memory_mb,
        runtime=generate_minutes,
    params:
        **stage(stages.vectors),
        organism=subpath(input.organism, parent=True),
    shell:
        "python -m perfmis vectors --settings {params.settings:q} --fingerprint {params.fingerprint}"
        " --base {input.base} --organism {params.organism} --requests {input.requests}"
        " --protocol {input.protocol} --transcripts {input.transcripts} --outcomes {input.outcomes}"
        " --contrasts {input.contrasts} --output {output.vectors} > {log} 2>&1"


rule steering_transcripts:
    input:
        base=f"{root}/models/{{model}}/reference.json",
        organism=rules.organism.output.lineage,
        requests=rules.requests.output.table,
        protocol=PROTOCOL,
        vectors=rules.vectors.output.vectors,
    output:
        f"{root}/steering/{{model}}/seed{{seed}}/transcripts.parquet",
    log:
        f"{root}/logs/steering/{{model}}/seed{{seed}}.log",
    benchmark:
        f"{root}/benchmarks/steering/{{model}}/seed{{seed}}.tsv"
    conda:
        ENV
    threads: lambda w: size(w).threads
    resources:
        gpu=gpus,
        mem_mb=memory_mb,
        runtime=generate_minutes,
    params:
        **stage(stages.steering),
        organism=subpath(input.organism, parent=True),
        serving=serving,
    shell:
        "python -m perfmis steering --settings {params.settings:q} --fingerprint {params.fingerprint}"
        " --base {input.base} --adapters organism={params.organism} --requests {input.requests}"
        " --protocol {input.protocol} --vectors {input.vectors} {params.serving} --output {output} > {log} 2>&1"


rule steering_outcomes:
    input:
        transcripts=rules.steering_transcripts.output,
        judgements=judged(
            "steering", [f"{root}/steering/{{model}}/seed{{seed}}/judgements.parquet"]
        ),
        protocols=PROTOCOL,
        patterns=stages.resource("patterns"),
    output:
        f"{root}/steering/{{model}}/seed{{seed}}/outcomes.parquet",
    log:
        f"{root}/logs/steering/outcomes/{{model}}/seed{{seed}}.log",
    benchmark:
        f"{root}/benchmarks/steering/outcomes/{{model}}/seed{{seed}}.tsv"
    conda:
        ENV
    threads: 1
    resources:
        mem_mb=16000,
        runtime=60,
    params:
        **stage(stages.steering_outcomes),
        judgements=judgements_option,
    shell:
        "python -m perfmis outcomes --settings {params.settings:q} --fingerprint {params.fingerprint}"
        " --protocols {input.protocols} --patterns {input.patterns}"
        " --transcripts {input.transcripts} {params.judgements} --outcomes {output} > {log} 2>&1"
