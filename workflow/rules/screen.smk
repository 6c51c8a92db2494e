# Which organisms have a gap at all: base and organism of every candidate, under a written rule.
rule screen_transcripts:
    input:
        base=f"{root}/models/{{model}}/reference.json",
        requests=rules.requests.output.table,
        protocol=PROTOCOL,
        adapters=[adapter(ORGANISM)],
        drawn=ancient(first_seed),
    output:
        expand(
            f"{root}/transcripts/{{{{model}}}}/seed{{{{seed}}}}/{{checkpoint}}/{protocol}.parquet",
            checkpoint=[BASE, ORGANISM],
        ),
    log:
        f"{root}/logs/screen/transcripts/{{model}}/seed{{seed}}.log",
    benchmark:
        f"{root}/benchmarks/screen/transcripts/{{model}}/seed{{seed}}.tsv"
    conda:
        ENV
    threads: lambda w: size(w).threads
    resources:
        gpu=gpus,
        mem_mb=memory_mb,
        runtime=generate_minutes,
    params:
        **stage(stages.screen_transcripts),
        folder=f"{root}/transcripts/{{model}}/seed{{seed}}",
        adapters=adapter_arguments,
        serving=serving,
    shell:
        "python -m perfmis generation --settings {params.settings:q} --fingerprint {params.fingerprint}"
        " --base {input.base} --requests {input.requests} --protocol {input.protocol}"
        " --adapters {params.adapters} {params.serving} --output {params.folder} > {log} 2>&1"


rule screen_outcomes:
    input:
        transcripts=rules.screen_transcripts.output,
        judgements=judged(
            "checkpoints",
            expand(
                f"{root}/judgements/{{{{model}}}}/seed{{{{seed}}}}/{{checkpoint}}/{protocol}.parquet",
                checkpoint=[BASE, ORGANISM],
            ),
        ),
        protocols=PROTOCOL,
        patterns=stages.resource("patterns"),
    output:
        expand(
            f"{root}/outcomes/{{{{model}}}}/seed{{{{seed}}}}/{{checkpoint}}/{protocol}.parquet",
            checkpoint=[BASE, ORGANISM],
        ),
    log:
        f"{root}/logs/screen/outcomes/{{model}}/seed{{seed}}.log",
    benchmark:
        f"{root}/benchmarks/screen/outcomes/{{model}}/seed{{seed}}.tsv"
    conda:
        ENV
    threads: 1
    resources:
        mem_mb=8000,
        runtime=60,
    params:
        **stage(stages.screened),
        judgements=judgements_option,
    shell:
        "python -m perfmis outcomes --settings {params.settings:q} --fingerprint {params.fingerprint}"
        " --protocols {input.protocols} --patterns {input.patterns}"
        " --transcripts {input.transcripts} {params.judgements} --outcomes {output} > {log} 2>&1"


checkpoint screen:
    input:
        over_all("screen_outcomes", *rules.screen_outcomes.output),
    output:
        table=f"{root}/screen/screen.parquet",
        kept=f"{root}/screen/kept.json",
    log:
        f"{root}/logs/screen/screen.log",
    benchmark:
        f"{root}/benchmarks/screen/screen.tsv"
    conda:
        ENV
    threads: 1
    resources:
        mem_mb=8000,
        runtime=30,
    params:
        **stage(stages.screen),
    shell:
        "python -m perfmis screen --settings {params.settings:q} --fingerprint {params.fingerprint}"
        " --outcomes {input} --output {output.table} --kept {output.kept} > {log} 2>&1"
