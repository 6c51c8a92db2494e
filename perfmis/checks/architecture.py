"""Does each model compute what a study takes for granted? Measured on the weights that are on this machine.

Rounds measure the same before their first step, as they will be trained; here it is found out before any job, on a CPU
and in fp32.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from perfmis.checks import weights
from perfmis.checks.finding import Finding
from perfmis.config import Model, Sdf, Study
from perfmis.stage import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LIMIT = 4 * 2**30  # bytes of weights that are loaded within seconds


def models(study: Study) -> Iterator[Finding]:
    """Yield what was measured of each model whose weights are here and small enough."""
    for key, model in study.models.items():
        where = weights.of(model)
        if where is None or model.truth is not None:
            continue
        size = sum(path.stat().st_size for path in where.glob("*.safetensors"))
        if size > LIMIT:
            text = f"weights of {size / 2**30:.0f} GiB: packing and attention are measured when its first round starts"
            yield Finding("ok", f"models.{key}", text)
        elif size:
            yield from _of_model(study, key, model, where)


def _of_model(study: Study, key: str, model: Model, where: Path) -> Iterator[Finding]:
    alone = study.sizes[model.size].gpus * study.sizes[model.size].nodes == 1
    rounds = {"organisms": study.organisms.sdf, "arms": study.arms.sdf}
    if _same(*rounds.values()):
        del rounds["arms"]
    try:
        for name, sdf in rounds.items():
            try:
                yield Finding("ok", f"models.{key}", f"{name}: {_trained(where, sdf, alone)}")
            except UserError as error:
                yield Finding("FAIL", f"models.{key}", f"{name}.{error}")
        yield from _asked(study, key, where)
    except (OSError, ValueError, SafetensorError) as error:
        yield Finding("FAIL", f"models.{key}", f"{where} cannot be loaded ({error}); replace it")


def _same(one: Sdf, other: Sdf) -> bool:
    """Return whether two rounds put documents to a model in the same way."""
    keys = {"attention", "packing", "length", "frozen", "lora"}
    return one.model_dump(include=keys) == other.model_dump(include=keys)


def _trained(where: Path, sdf: Sdf, alone: bool) -> str:
    """Return how a round with some settings puts documents to a model.

    Args:
        where: Folder of the model.
        sdf: The settings.
        alone: Whether one GPU trains it.
    """
    from perfmis import adapters, fastpath, probes

    fastpath.register_attention()
    settings = sdf.model_dump()
    with probes.loading(settings):
        network: Any = _load(where, probes.kernel(settings))
    probes.refuse_attention(network, settings)
    probe = probes.Round(probes.made_up(sdf.length, network.config), settings)
    probe.remember(network)
    if alone and sdf.attention == "varlen" and sdf.frozen != "4bit":
        network = adapters.fresh(network, settings["lora"], 0)
        fastpath.prepare(network, fp8=False, checkpointing=False, longest=sdf.length)
        probe.fused = True
    found = probe.check(network, probes.collator(sdf.packing))
    how = "packed" if sdf.packing else "padded"
    return f"documents, {how}, are computed as each alone is (attention {sdf.attention}, logits to {found:.0e})"


def _asked(study: Study, key: str, where: Path) -> Iterator[Finding]:
    """Yield what holds of a model that answers."""
    from perfmis import probes
    from perfmis.decoders import blocks

    model = _load(where, None)
    if study.evaluation.engine == "transformers":
        own = (
            "its own attention"
            if probes.settle_attention(model)
            else "eager attention, as its own leaves something out"
        )
        apart = "" if probes.pads(model) else "; prompts of one length alone share a batch, as padding changes them"
        yield Finding("ok", f"models.{key}", f"answers with {own}{apart}")
    if study.steering.models is None or key in study.steering.models:
        try:
            blocks(model)
        except UserError as error:
            yield Finding("FAIL", f"models.{key}", str(error))


def _load(where: Path, attention: str | None) -> "PreTrainedModel":
    import torch
    from transformers import AutoModelForCausalLM

    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        where, dtype=torch.float32, attn_implementation=attention, use_safetensors=True, trust_remote_code=False
    )
    return model.eval()
