"""Can the adapters that the study trains be trained and served?"""

from perfmis.checks.finding import Finding
from perfmis.config import Study

# vLLM's highest `max_lora_rank`; the engine asks for the next one that vLLM allows.
SERVED = 512
EIGHT_BIT = 16


def exported(study: Study) -> dict[str, int]:
    """Return the rank of the adapters that are served: in two modes an arm's holds the organism's too."""
    organism, arm = study.organisms.sdf.lora.rank, study.arms.sdf.lora.rank
    return {"organisms": organism, "arms": organism if study.arms.mode == "continue" else organism + arm}


def ranks(study: Study) -> list[Finding]:
    """Return what the ranks and the dropout of a round stand in the way of, or that nothing does."""
    findings = []
    for key, rank in exported(study).items():
        if study.evaluation.engine == "vllm" and rank > SERVED:
            summed = " (organisms' and arms' added)" if key == "arms" and study.arms.mode != "continue" else ""
            fix = "lower it or set evaluation.engine: transformers"
            text = f"adapters of rank {rank}{summed}, vllm serves at most {SERVED}; {fix}"
            findings.append(Finding("FAIL", f"{key}.sdf.lora.rank", text))
    alone = sorted({m.size for m in study.models.values() if study.sizes[m.size].gpus * study.sizes[m.size].nodes == 1})
    for key, sdf in (("organisms", study.organisms.sdf), ("arms", study.arms.sdf)):
        if sdf.frozen == "fp8" and sdf.lora.rank % EIGHT_BIT:
            text = f"{sdf.lora.rank} is no multiple of {EIGHT_BIT}, as frozen: fp8 needs; change it or set frozen: full"
            findings.append(Finding("FAIL", f"{key}.sdf.lora.rank", text))
        if alone and sdf.attention == "varlen" and sdf.packing and sdf.frozen != "4bit" and sdf.lora.dropout:
            text = f"varlen on the one GPU of sizes.{alone[0]} knows none; set 0, or attention: sdpa"
            findings.append(Finding("FAIL", f"{key}.sdf.lora.dropout", text))
    gpus = sorted({model.size for model in study.models.values() if study.sizes[model.size].gpus})
    if study.evaluation.engine == "vllm" and study.evaluation.precision == "fp32" and gpus:
        text = f"fp32, but on the GPUs of sizes.{gpus[0]} vllm adds adapters in 16 bits only; set bf16, or engine: "
        findings.append(Finding("FAIL", "evaluation.precision", f"{text}transformers"))
    served = ", ".join(f"{key} {rank}" for key, rank in exported(study).items())
    return findings or [Finding("ok", "lora", f"ranks of the served adapters: {served}")]
