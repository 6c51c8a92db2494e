# Tables: light jobs that read outcomes, never a model.
def table_rule_files(name):
    return {
        "table": f"{root}/tables/{name}.parquet",
        "csv": f"{root}/tables/{name}.csv",
    }


screen_outcomes = over_all(*rules.screen_outcomes.output)
arm_outcomes = over_kept(*rules.outcomes.output)


rule table_beliefs:
    input:
        screen=rules.screen.output.kept if study.screen.keep == "auto" else [],
        beliefs=over_kept(rules.beliefs.output[0]),
    output:
        **table_rule_files("beliefs"),
    log:
        f"{root}/logs/tables/beliefs.log",
    benchmark:
        f"{root}/benchmarks/tables/beliefs.tsv"
    conda:
        ENV
    threads: 1
    resources:
        mem_mb=4000,
        runtime=30,
    params:
        **stage(stages.table_beliefs),
    shell:
        "python -m perfmis tables.beliefs --settings {params.settings:q} --fingerprint {params.fingerprint}"
        " --beliefs {input.beliefs} --output {output.table} > {log} 2>&1"
