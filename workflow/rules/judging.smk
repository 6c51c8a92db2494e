# A judge model besides the reply's own tag; without the section `judge` none of this is part of the DAG.
if study.judge:

    rule judge_model:
        output:
            f"{root}/judge/reference.json",
        log:
            f"{root}/logs/judge/model.log",
        benchmark:
            f"{root}/benchmarks/judge/model.tsv"
        conda:
            ENV
        threads: 1
        resources:
            mem_mb=8000,
            runtime=1440,
        params:
            **stage(stages.judge_model),
            module="server_reference" if study.judge.api else "hub",
        shell:
            "python -m perfmis {params.module} --settings {params.settings:q} --fingerprint {params.fingerprint}"
            " --output {output} > {log} 2>&1"

    # The reference holds more of a server than what decides its answers; fingerprints hold the latter.
    rule judgements:
        input:
            base=ancient(rules.judge_model.output),
            requests=rules.requests.output.table,
            protocols=PROTOCOL,
            rubrics=judges,
            transcripts=rules.transcripts.output,
        output:
            expand(
                f"{root}/judgements/{{{{model}}}}/seed{{{{seed}}}}/{{checkpoint}}/{protocol}.parquet",
                checkpoint=study.arms.names,
            ),
        log:
            f"{root}/logs/judge/{{model}}/seed{{seed}}.log",
        benchmark:
            f"{root}/benchmarks/judge/{{model}}/seed{{seed}}.tsv"
        localrule: study.judge.api is not None
        conda:
            ENV
        threads: lambda w: judge_size(w).threads
        resources:
            gpu=lambda w: judge_size(w).gpus,
            mem_mb=judge_memory_mb,
            runtime=judge_minutes,
        params:
            **stage(stages.arm_judgements),
            serving=judge_serving,
        shell:
            "python -m perfmis judging --settings {params.settings:q} --fingerprint {params.fingerprint}"
            " --base {input.base} --requests {input.requests} --protocols {input.protocols}"
            " --rubrics {input.rubrics:q} --transcripts {input.transcripts} {params.serving}"
            " --judgements {output} > {log} 2>&1"

    use rule judgements as screen_judgements with:
        input:
            base=ancient(rules.judge_model.output),
            requests=rules.requests.output.table,
            protocols=PROTOCOL,
            rubrics=judges,
            transcripts=rules.screen_transcripts.output,
        output:
            expand(
                f"{root}/judgements/{{{{model}}}}/seed{{{{seed}}}}/{{checkpoint}}/{protocol}.parquet",
                checkpoint=[BASE, ORGANISM],
            ),
        log:
            f"{root}/logs/judge/screen/{{model}}/seed{{seed}}.log",
        benchmark:
            f"{root}/benchmarks/judge/screen/{{model}}/seed{{seed}}.tsv"
        params:
            **stage(stages.screen_judgements),
            serving=judge_serving,

    use rule judgements as steering_judgements with:
        input:
            base=ancient(rules.judge_model.output),
            requests=rules.requests.output.table,
            protocols=PROTOCOL,
            rubrics=judges,
            transcripts=rules.steering_transcripts.output,
        output:
            f"{root}/steering/{{model}}/seed{{seed}}/judgements.parquet",
        log:
            f"{root}/logs/judge/steering/{{model}}/seed{{seed}}.log",
        benchmark:
            f"{root}/benchmarks/judge/steering/{{model}}/seed{{seed}}.tsv"
        params:
            **stage(stages.steering_judgements),
            serving=judge_serving,

    use rule judgements as prompting_judgements with:
        input:
            base=ancient(rules.judge_model.output),
            requests=rules.requests.output.table,
            protocols=PROTOCOLS,
            rubrics=judges,
            transcripts=rules.prompting_transcripts.output,
        output:
            f"{root}/prompting/{{model}}/seed{{seed}}/judgements.parquet",
        log:
            f"{root}/logs/judge/prompting/{{model}}/seed{{seed}}.log",
        benchmark:
            f"{root}/benchmarks/judge/prompting/{{model}}/seed{{seed}}.tsv"
        params:
            **stage(stages.prompting_judgements),
            serving=judge_serving,

    if study.prompting.closed:

        use rule judgements as closed_judgements with:
            input:
                base=ancient(rules.judge_model.output),
                requests=rules.requests.output.table,
                protocols=PROTOCOLS,
                rubrics=judges,
                transcripts=rules.closed_transcripts.output,
            output:
                f"{root}/closed/{{closed}}/judgements.parquet",
            log:
                f"{root}/logs/judge/closed/{{closed}}.log",
            benchmark:
                f"{root}/benchmarks/judge/closed/{{closed}}.tsv"
            params:
                **stage(stages.closed_judgements),
                serving=judge_serving,

    rule audit_sheet:
        input:
            screened=over_all("screen_outcomes", *rules.screen_transcripts.output),
            treated=over_kept("outcomes", *rules.transcripts.output),
            requests=rules.requests.output.table,
            protocols=PROTOCOL,
            rubrics=judges,
        output:
            f"{root}/{configuration.SHEET}",
        log:
            f"{root}/logs/judge/sheet.log",
        benchmark:
            f"{root}/benchmarks/judge/sheet.tsv"
        conda:
            ENV
        threads: 1
        resources:
            mem_mb=16000,
            runtime=60,
        params:
            **stage(stages.audit_sheet),
        shell:
            "python -m perfmis audit_sample --settings {params.settings:q} --fingerprint {params.fingerprint}"
            " --protocols {input.protocols} --rubrics {input.rubrics:q} --requests {input.requests}"
            " --transcripts {input.screened} {input.treated} --output {output} > {log} 2>&1"

    rule validation:
        input:
            base=ancient(rules.judge_model.output),
            rubrics=judges,
            screened=over_all("screen_outcomes", *rules.screen_outcomes.output),
            treated=over_kept("outcomes", *rules.outcomes.output),
            judged_screened=over_all("screen_outcomes", *rules.screen_judgements.output),
            judged_treated=over_kept("outcomes", *rules.judgements.output),
            sheet=[study.judge.sheet] if study.judge.sheet else [],
        output:
            **table_output("validation"),
        log:
            f"{root}/logs/judge/validation.log",
        benchmark:
            f"{root}/benchmarks/judge/validation.tsv"
        localrule: study.judge.api is not None
        conda:
            ENV
        threads: lambda w: judge_size(w).threads
        resources:
            gpu=lambda w: judge_size(w).gpus if study.judge.labels else 0,
            mem_mb=judge_memory_mb,
            runtime=judge_minutes,
        params:
            **stage(stages.validation),
            sheet=["--sheet", study.judge.sheet] if study.judge.sheet else [],
            serving=judge_serving,
        shell:
            "python -m perfmis validation --settings {params.settings:q} --fingerprint {params.fingerprint}"
            " --base {input.base} --rubrics {input.rubrics:q} --outcomes {input.screened} {input.treated}"
            " --judgements {input.judged_screened} {input.judged_treated} {params.sheet:q} {params.serving} --output {output.table} > {log} 2>&1"

    rule table_scorings:
        input:
            screened=over_all("screen_outcomes", *rules.screen_outcomes.output),
            treated=over_kept("outcomes", *rules.outcomes.output),
            validation=rules.validation.output.table,
        output:
            **table_output("scorings"),
        log:
            f"{root}/logs/tables/scorings.log",
        benchmark:
            f"{root}/benchmarks/tables/scorings.tsv"
        conda:
            ENV
        threads: 1
        resources:
            mem_mb=16000,
            runtime=60,
        params:
            **stage(stages.table_scorings),
        shell:
            "python -m perfmis tables.scorings --settings {params.settings:q} --fingerprint {params.fingerprint}"
            " --outcomes {input.screened} {input.treated} --validation {input.validation} --output {output.table} > {log} 2>&1"
