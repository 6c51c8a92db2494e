# Samples of the arms, in every tier; one engine serves all arms of an organism.
rule transcripts:
    input:
        base=f"{root}/models/{{model}}/reference.json",
        requests=rules.requests.output.table,
        protocol=PROTOCOL,
        adapters=[adapter(arm) for arm in study.arms.names],
    output:
        expand(
            f"{root}/transcripts/{{{{model}}}}/seed{{{{seed}}}}/{{checkpoint}}/{protocol}.parquet",
            checkpoint=study.arms.names,
        ),
    log:
        f"{root}/logs/transcripts/{{model}}/seed{{seed}}.log",
    benchmark:
        f"{root}/benchmarks/transcripts/{{model}}/seed{{seed}}.tsv"
    conda:
        ENV
    threads: lambda w: size(w).threads
    resources:
        gpu=gpus,
        mem_mb=memory_mb,
        runtime=generate_minutes,
    params:
        **stage(stages.arm_transcripts),
        folder=f"{root}/transcripts/{{model}}/seed{{seed}}",
        adapters=adapter_arguments,
        serving=serving,
    shell:
        "python -m perfmis generation --settings {params.settings:q} --fingerprint {params.fingerprint}"
        " --base {input.base} --requests {input.requests} --protocol {input.protocol}"
        " --adapters {params.adapters} {params.serving} --output {params.folder} > {log} 2>&1"


rule outcomes:
    input:
        transcripts=rules.transcripts.output,
        judgements=judged(
            "checkpoints",
            expand(
                f"{root}/judgements/{{{{model}}}}/seed{{{{seed}}}}/{{checkpoint}}/{protocol}.parquet",
                checkpoint=study.arms.names,
            ),
        ),
        protocols=PROTOCOL,
        patterns=stages.resource("patterns"),
    output:
        expand(
            f"{root}/outcomes/{{{{model}}}}/seed{{{{seed}}}}/{{checkpoint}}/{protocol}.parquet",
            checkpoint=study.arms.names,
        ),
    log:
        f"{root}/logs/outcomes/{{model}}/seed{{seed}}.log",
    benchmark:
        f"{root}/benchmarks/outcomes/{{model}}/seed{{seed}}.tsv"
    conda:
        ENV
    threads: 1
    resources:
        mem_mb=16000,
        runtime=60,
    params:
        **stage(stages.treated),
        judgements=judgements_option,
    shell:
        "python -m perfmis outcomes --settings {params.settings:q} --fingerprint {params.fingerprint}"
        " --protocols {input.protocols} --patterns {input.patterns}"
        " --transcripts {input.transcripts} {params.judgements} --outcomes {output} > {log} 2>&1"
