# Tables: light jobs that read outcomes, never a model.
screened = over_all("screen_outcomes", *rules.screen_outcomes.output)
treated = over_kept("outcomes", *rules.outcomes.output)
steered = over_kept("steering_outcomes", *rules.steering_outcomes.output, steered=True)
prompted_outcomes = over_kept("prompting_outcomes", *rules.prompting_outcomes.output)
closed_outcomes = [
    f"{root}/closed/{name}/outcomes.parquet"
    for name in study.prompting.closed
    if not lost.has("closed_outcomes", closed=name)
]
training_logs = {
    name: str(Path(adapter(name)).with_name("log.parquet"))
    for name in [ORGANISM, *study.arms.names]
}


rule table_training:
    input:
        over_checkpoints(training_logs),
    output:
        **table_output("training"),
        curves=f"{root}/tables/curves.parquet",
    log:
        f"{root}/logs/tables/training.log",
    benchmark:
        f"{root}/benchmarks/tables/training.tsv"
    conda:
        ENV
    threads: 1
    resources:
        mem_mb=8000,
        runtime=30,
    params:
        **stage(stages.table_training),
        logs=over_checkpoints(
            {
                name: f"{{model}}/{{seed}}/{name}={log}"
                for name, log in training_logs.items()
            }
        ),
    shell:
        "python -m perfmis tables.training --settings {params.settings:q} --fingerprint {params.fingerprint}"
        " --logs {params.logs} --output {output.table} --curves {output.curves} > {log} 2>&1"


rule table_beliefs:
    input:
        over_kept("beliefs", *rules.beliefs.output),
    output:
        **table_output("beliefs"),
    log:
        f"{root}/logs/tables/beliefs.log",
    benchmark:
        f"{root}/benchmarks/tables/beliefs.tsv"
    conda:
        ENV
    threads: 1
    resources:
        mem_mb=8000,
        runtime=30,
    params:
        **stage(stages.table_beliefs),
    shell:
        "python -m perfmis tables.beliefs --settings {params.settings:q} --fingerprint {params.fingerprint}"
        " --beliefs {input} --output {output.table} > {log} 2>&1"


rule table_gaps:
    input:
        screened=screened,
        treated=treated,
        beliefs=rules.table_beliefs.output.table,
        validation=judged("checkpoints", [f"{root}/tables/validation.parquet"]),
    output:
        **table_output("gaps"),
    log:
        f"{root}/logs/tables/gaps.log",
    benchmark:
        f"{root}/benchmarks/tables/gaps.tsv"
    conda:
        ENV
    threads: 1
    resources:
        mem_mb=8000,
        runtime=60,
    params:
        **stage(stages.table_gaps),
        validation=lambda w, input: (
            f"--validation {input.validation}" if input.validation else ""
        ),
    shell:
        "python -m perfmis tables.gaps --settings {params.settings:q} --fingerprint {params.fingerprint}"
        " --outcomes {input.screened} {input.treated} --beliefs {input.beliefs} {params.validation}"
        " --output {output.table} > {log} 2>&1"


rule table_steering:
    input:
        steered,
    output:
        **table_output("steering"),
    log:
        f"{root}/logs/tables/steering.log",
    benchmark:
        f"{root}/benchmarks/tables/steering.tsv"
    conda:
        ENV
    threads: 1
    resources:
        mem_mb=8000,
        runtime=60,
    params:
        **stage(stages.table_steering),
    shell:
        "python -m perfmis tables.steering --settings {params.settings:q} --fingerprint {params.fingerprint}"
        " --outcomes {input} --output {output.table} > {log} 2>&1"


rule table_prompting:
    input:
        prompted_outcomes,
        closed_outcomes,
    output:
        **table_output("prompting"),
        **table_output("calibration", table="calibration", csv="calibration_csv"),
    log:
        f"{root}/logs/tables/prompting.log",
    benchmark:
        f"{root}/benchmarks/tables/prompting.tsv"
    conda:
        ENV
    threads: 1
    resources:
        mem_mb=8000,
        runtime=60,
    params:
        **stage(stages.table_prompting),
    shell:
        "python -m perfmis tables.prompting --settings {params.settings:q} --fingerprint {params.fingerprint}"
        " --outcomes {input} --output {output.table} --calibration {output.calibration} > {log} 2>&1"


rule table_profiles:
    input:
        screened=over_kept("screen_outcomes", *rules.screen_outcomes.output),
        treated=treated,
        steered=steered,
        prompted=prompted_outcomes,
        gaps=rules.table_gaps.output.table,
    output:
        **table_output("profiles"),
    log:
        f"{root}/logs/tables/profiles.log",
    benchmark:
        f"{root}/benchmarks/tables/profiles.tsv"
    conda:
        ENV
    threads: 1
    resources:
        mem_mb=16000,
        runtime=60,
    params:
        **stage(stages.table_profiles),
    shell:
        "python -m perfmis tables.profiles --settings {params.settings:q} --fingerprint {params.fingerprint}"
        " --outcomes {input.screened} {input.treated} --steering {input.steered} --prompting {input.prompted}"
        " --gaps {input.gaps} --output {output.table} > {log} 2>&1"


rule table_convergence:
    input:
        rules.table_profiles.output.table,
    output:
        **table_output("convergence"),
    log:
        f"{root}/logs/tables/convergence.log",
    benchmark:
        f"{root}/benchmarks/tables/convergence.tsv"
    conda:
        ENV
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        **stage(stages.table_convergence),
    shell:
        "python -m perfmis tables.convergence --settings {params.settings:q} --fingerprint {params.fingerprint}"
        " --profiles {input} --output {output.table} > {log} 2>&1"


rule table_published:
    input:
        source="resources/published.csv",
        gaps=rules.table_gaps.output.table,
    output:
        **table_output("published"),
    log:
        f"{root}/logs/tables/published.log",
    benchmark:
        f"{root}/benchmarks/tables/published.tsv"
    conda:
        ENV
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        **stage(stages.table_published),
    shell:
        "python -m perfmis tables.published --settings {params.settings:q} --fingerprint {params.fingerprint}"
        " --source {input.source} --gaps {input.gaps} --output {output.table} > {log} 2>&1"


rule story:
    input:
        screen=rules.screen.output.table,
        gaps=rules.table_gaps.output.table,
        profiles=rules.table_profiles.output.table,
        calibration=rules.table_prompting.output.calibration,
    output:
        f"{root}/report/story.rst",
    log:
        f"{root}/logs/tables/story.log",
    benchmark:
        f"{root}/benchmarks/tables/story.tsv"
    conda:
        ENV
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        **stage(stages.story),
    shell:
        "python -m perfmis story --settings {params.settings:q} --fingerprint {params.fingerprint}"
        " --screen {input.screen} --gaps {input.gaps} --profiles {input.profiles} --prompted {input.calibration}"
        " --output {output} > {log} 2>&1"
