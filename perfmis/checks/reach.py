"""What would LoRA reach in the models that lie on this machine, and could their arms be exported?

Their configurations are enough: the models are built without weights, in seconds.
"""

from pathlib import Path

from perfmis.checks import weights
from perfmis.checks.finding import Finding
from perfmis.config import Study
from perfmis.stage import UserError

UNTRIED = (
    "vllm reads adapters of fused experts in its mixed format, which was not tried on a GPU; compare some samples with "
    "those of evaluation.engine: transformers"
)


def shares(study: Study) -> list[Finding]:
    """Return what both rounds reach in each model; one that is not on this machine, or is made here, is left out."""
    findings = []
    for key, model in study.models.items():
        where = weights.of(model)
        if where is not None and model.truth is None and (where / "config.json").is_file():
            findings += _of_model(study, f"models.{key}", where)
    return findings


def _of_model(study: Study, key: str, where: Path) -> list[Finding]:
    from transformers import AutoConfig

    from perfmis import merge, reach, rehearsal

    try:
        model = reach.blank(AutoConfig.from_pretrained(where, trust_remote_code=False))
    except (OSError, ValueError, AttributeError) as error:
        return [Finding("warning", key, f"what LoRA reaches was not measured: {' '.join(str(error).split())[:160]}")]
    findings: list[Finding] = []
    for name, sdf in (("organisms", study.organisms.sdf), ("arms", study.arms.sdf)):
        try:
            found = reach.measure(model, sdf.lora.experts)
            reach.refuse(found, sdf.lora.model_dump(), f"{name}.sdf.lora")
            rehearsal.check(model, sdf.lora.experts)
            if study.arms.mode == "merge" and name == "organisms":
                merge.refuse(found.modules, found.parameters, where)
        except UserError as error:
            about, _, text = str(error).partition(": ")
            findings.append(Finding("FAIL", about, f"{key}: {text}"))
            continue
        findings.append(Finding("ok", key, f"{name}: {found}"))
        if sdf.frozen == "4bit" and found.experts:
            share = f"{found.experts / found.total:.0%} of the blocks' weights"
            text = f"{key}: 4bit leaves fused experts, {share}, in {sdf.precision}; plan the memory for them"
            findings.append(Finding("warning", f"{name}.sdf.frozen", text))
        if found.fused and study.evaluation.engine == "vllm":
            findings.append(Finding("warning", key, f"{name}: {UNTRIED}"))
    return findings
