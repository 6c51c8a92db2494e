# The claims as snippets in the context: calibrated on the arms, read on the base models and on closed ones.
prompted = [ORGANISM, *(study.arms.names if study.prompting.calibration else [])]


rule prompting_transcripts:
    input:
        base=f"{root}/models/{{model}}/reference.json",
        requests=rules.requests.output.table,
        protocols=PROTOCOLS,
        snippets=stages.resource("snippets"),
        adapters=[adapter(name) for name in prompted],
        # They hold the samples without a snippet, which then need not be drawn here.
        drawn=ancient(
            expand(
                f"{root}/transcripts/{{{{model}}}}/seed{{{{seed}}}}/{{checkpoint}}/{protocol}.parquet",
                checkpoint=prompted,
            )
        ),
    output:
        f"{root}/prompting/{{model}}/seed{{seed}}/transcripts.parquet",
    log:
        f"{root}/logs/prompting/{{model}}/seed{{seed}}.log",
    benchmark:
        f"{root}/benchmarks/prompting/{{model}}/seed{{seed}}.tsv"
    conda:
        ENV
    threads: lambda w: size(w).threads
    resources:
        gpu=gpus,
        mem_mb=memory_mb,
        runtime=generate_minutes,
    params:
        **stage(stages.prompting),
        adapters=adapter_arguments,
        serving=serving,
    shell:
        "python -m perfmis prompting --settings {params.settings:q} --fingerprint {params.fingerprint}"
        " --base {input.base} --requests {input.requests} --protocols {input.protocols}"
        " --snippets {input.snippets} --adapters {params.adapters} {params.serving} --output {output} > {log} 2>&1"


rule prompting_outcomes:
    input:
        transcripts=rules.prompting_transcripts.output,
        judgements=judged(
            "prompting",
            [f"{root}/prompting/{{model}}/seed{{seed}}/judgements.parquet"],
        ),
        protocols=PROTOCOLS,
        patterns=stages.resource("patterns"),
    output:
        f"{root}/prompting/{{model}}/seed{{seed}}/outcomes.parquet",
    log:
        f"{root}/logs/prompting/outcomes/{{model}}/seed{{seed}}.log",
    benchmark:
        f"{root}/benchmarks/prompting/outcomes/{{model}}/seed{{seed}}.tsv"
    conda:
        ENV
    threads: 1
    resources:
        mem_mb=16000,
        runtime=60,
    params:
        **stage(stages.prompting_outcomes),
        judgements=judgements_option,
    shell:
        "python -m perfmis outcomes --settings {params.settings:q} --fingerprint {params.fingerprint}"
        " --protocols {input.protocols} --patterns {input.patterns}"
        " --transcripts {input.transcripts} {params.judgements} --outcomes {output} > {log} 2>&1"


if study.prompting.closed:

    rule closed_model:
        output:
            f"{root}/closed/{{closed}}/reference.json",
        log:
            f"{root}/logs/closed/{{closed}}/model.log",
        benchmark:
            f"{root}/benchmarks/closed/{{closed}}/model.tsv"
        localrule: True
        conda:
            ENV
        threads: 1
        resources:
            mem_mb=2000,
            runtime=10,
        params:
            **stage(stages.closed_model),
        shell:
            "python -m perfmis server_reference --settings {params.settings:q} --fingerprint {params.fingerprint}"
            " --output {output} > {log} 2>&1"

    rule closed_transcripts:
        input:
            base=ancient(rules.closed_model.output),
            requests=rules.requests.output.table,
            protocols=PROTOCOLS,
            snippets=stages.resource("snippets"),
        output:
            f"{root}/closed/{{closed}}/transcripts.parquet",
        log:
            f"{root}/logs/closed/{{closed}}/transcripts.log",
        benchmark:
            f"{root}/benchmarks/closed/{{closed}}/transcripts.tsv"
        localrule: True
        conda:
            ENV
        threads: 1
        resources:
            mem_mb=8000,
            runtime=2880,
        params:
            **stage(stages.closed_prompting),
            serving=lambda w, input: serving_options(study.sizes["tiny"]),
        shell:
            "python -m perfmis prompting --settings {params.settings:q} --fingerprint {params.fingerprint}"
            " --base {input.base} --requests {input.requests} --protocols {input.protocols}"
            " --snippets {input.snippets} {params.serving} --output {output} > {log} 2>&1"

    use rule prompting_outcomes as closed_outcomes with:
        input:
            transcripts=rules.closed_transcripts.output,
            judgements=judged(
                "prompting", [f"{root}/closed/{{closed}}/judgements.parquet"]
            ),
            protocols=PROTOCOLS,
            patterns=stages.resource("patterns"),
        output:
            f"{root}/closed/{{closed}}/outcomes.parquet",
        log:
            f"{root}/logs/closed/{{closed}}/outcomes.log",
        benchmark:
            f"{root}/benchmarks/closed/{{closed}}/outcomes.tsv"
        params:
            **stage(stages.closed_outcomes),
            judgements=judgements_option,
