# The page on which people read transcripts: whole beside the report, and as much as it can hold inside of it.
rule page:
    input:
        requests=rules.requests.output.table,
        protocols=PROTOCOL,
        patterns=stages.resource("patterns"),
        rubrics=judged("checkpoints", judges),
        screened_transcripts=over_all(
            "screen_outcomes", *rules.screen_transcripts.output
        ),
        treated_transcripts=over_kept("outcomes", *rules.transcripts.output),
        screened_outcomes=over_all("screen_outcomes", *rules.screen_outcomes.output),
        treated_outcomes=over_kept("outcomes", *rules.outcomes.output),
    output:
        page=f"{root}/transcripts.html",
        excerpt=report(
            f"{root}/report/transcripts.html",
            caption="../report/transcripts.rst",
            category="Transcripts",
            labels={"page": "The tiers of a prompt side by side"},
        ),
    log:
        f"{root}/logs/page.log",
    benchmark:
        f"{root}/benchmarks/page.tsv"
    conda:
        ENV
    threads: 1
    resources:
        mem_mb=16000,
        runtime=60,
    params:
        **stage(stages.page),
    shell:
        "python -m perfmis viewer.page --settings {params.settings:q} --fingerprint {params.fingerprint}"
        " --requests {input.requests} --protocols {input.protocols} --patterns {input.patterns}"
        " --rubrics {input.rubrics:q} --transcripts {input.screened_transcripts} {input.treated_transcripts}"
        " --outcomes {input.screened_outcomes} {input.treated_outcomes}"
        " --output {output.page} --excerpt {output.excerpt} > {log} 2>&1"
