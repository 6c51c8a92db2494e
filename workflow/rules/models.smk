# Base models: pinned weights of the hub, or tiny models with a planted truth that are trained here.
tiny_models = [name for name, model in study.models.items() if model.truth is not None]
other_models = [name for name in study.models if name not in tiny_models]

if tiny_models:

    rule tiny_trunk:
        output:
            weights=f"{root}/models/trunk/model.safetensors",
            log=f"{root}/models/trunk/log.parquet",
            manifest=f"{root}/models/trunk/trunk.json",
        log:
            f"{root}/logs/models/trunk.log",
        benchmark:
            f"{root}/benchmarks/models/trunk.tsv"
        conda:
            ENV
        threads: 2  # the same bits with one
        resources:
            mem_mb=2000,
            runtime=30,
        params:
            **stage(stages.trunk),
            folder=f"{root}/models/trunk",
        shell:
            "python -m perfmis tinyworld.trunk --settings {params.settings:q}"
            " --fingerprint {params.fingerprint} --output {params.folder} > {log} 2>&1"

    rule tiny_base:
        input:
            trunk=rules.tiny_trunk.output.manifest,
            weights=rules.tiny_trunk.output.weights,
        output:
            weights=f"{root}/models/{{model}}/model.safetensors",
            gate=f"{root}/models/{{model}}/gate.parquet",
            reference=f"{root}/models/{{model}}/reference.json",
        log:
            f"{root}/logs/models/{{model}}.log",
        benchmark:
            f"{root}/benchmarks/models/{{model}}.tsv"
        wildcard_constraints:
            model="|".join(map(re.escape, tiny_models)),
        conda:
            ENV
        threads: 1
        resources:
            mem_mb=2000,
            runtime=10,
        params:
            **stage(stages.model),
            trunk=subpath(input.trunk, parent=True),
            folder=subpath(output.reference, parent=True),
        shell:
            "python -m perfmis tinyworld.base --settings {params.settings:q} --fingerprint {params.fingerprint}"
            " --trunk {params.trunk} --output {params.folder} > {log} 2>&1"


if other_models:

    rule hub_model:
        output:
            reference=f"{root}/models/{{model}}/reference.json",
        log:
            f"{root}/logs/models/{{model}}.log",
        benchmark:
            f"{root}/benchmarks/models/{{model}}.tsv"
        wildcard_constraints:
            model="|".join(map(re.escape, other_models)),
        conda:
            ENV
        threads: 1
        resources:
            mem_mb=8000,
            runtime=1440,
        params:
            **stage(stages.model),
        shell:
            "python -m perfmis hub --settings {params.settings:q} --fingerprint {params.fingerprint}"
            " --output {output.reference} > {log} 2>&1"
