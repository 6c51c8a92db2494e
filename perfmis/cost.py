"""The cost model of a study: hours, GPU memory and disk of each job, from the configuration and stated assumptions.

Nothing here is measured: rates and shares are assumptions that `python -m perfmis plan` prints and that
``--assume`` replaces. Memory is in GiB, disk in GB, time in hours.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, field, fields, replace
from typing import Any, Literal

from perfmis.config import Evaluation, Judge, Sdf, Size, Study
from perfmis.vocabulary import BASE, FAMILY_CONCEPT, NEUTRAL, ORGANISM

GIB = 2.0**30
GB = 1e9
HOUR = 3600.0
ADAPTER_BYTES = 4  # adapters are trained, stored and loaded in fp32
TRAINED_BYTES = 16  # fp32 master and gradient, two Adam moments
CHECKPOINT_BYTES = 12  # adapter and two Adam moments
CHECKPOINTS_KEPT = 2
LOGIT_BYTES = 10  # a logit in 16 bits, in fp32, and its gradient or log-softmax in fp32
FROZEN_BYTES = {"fp8": 2.0, "4bit": 0.5}  # fp8 is held twice: once for the forward, once for the input gradient
CONTEXTS = 2  # a steering vector a concept, in and out of context
WRITER_BATCH = 64  # `CHUNK` of perfmis/corpora.py
WEIGHT_BYTES = {"bf16": 2, "fp32": 4}
TRAINED = ("organism", "arm")
ASKED = ("screen_transcripts", "transcripts", "prompting_transcripts", "steering_transcripts")
READ = ("beliefs", "vectors")
JUDGED = {"judgements": "transcripts"} | {
    f"{kind}_judgements": f"{kind}_transcripts" for kind in ("screen", "prompting", "steering")
}
LIGHT = (
    "requests",
    "protocol",
    "audit",
    "budget",
    "screen",
    "screen_outcomes",
    "outcomes",
    "steering_outcomes",
    "prompting_outcomes",
    "audit_sheet",
    "validation",
    "judge_model",
    "closed_model",
    "closed_transcripts",
    "closed_judgements",
    "closed_outcomes",
    "story",
    "page",
    "tiny_trunk",
    "tiny_base",
)
Engine = Literal["vllm", "transformers"]
CHUNK = 8192  # tokens that vllm reads in one pass
SEVERAL_NODES = "_multinode"  # ends the rules that train the same over several nodes


def _assumed(value: float, unit: str, meaning: str) -> Any:
    return field(default=value, metadata={"unit": unit, "meaning": meaning})


@dataclass(frozen=True)
class Assumptions:
    """What the model takes for granted; every field is printed with its unit and meaning, and can be replaced."""

    gpu_memory_gib: float = _assumed(139.0, "GiB", "memory of a GPU; 139: H200, 79: H100; peaks above it are marked !")
    matmul_tflops: float = _assumed(
        800.0, "TFLOP/s", "rate of large bf16 products on a GPU, also used for fp8 and 4bit"
    )
    share_one: float = _assumed(0.5, "of matmul rate", "reached in training on one GPU, and in reading prompts")
    share_node: float = _assumed(0.4, "of matmul rate", "reached in training with ZeRO-3 on one node")
    share_nodes: float = _assumed(0.25, "of matmul rate", "reached in training with ZeRO-3 across nodes")
    bandwidth_tbs: float = _assumed(4.8, "TB/s", "GPU memory bandwidth (data sheet; 4.8: H200, 3.35: H100)")
    share_bandwidth: float = _assumed(0.6, "of bandwidth", "reached while generating")
    longest_over_mean: float = _assumed(
        2.0, "x", "transformers: steps of a batch per mean answer, as it waits for its longest"
    )
    load_gbs: float = _assumed(2.0, "GB/s", "a node reads (and writes) weights at")
    download_gbs: float = _assumed(0.1, "GB/s", "weights come from the hub at")
    start_minutes: float = _assumed(5.0, "min", "start-up of a GPU job besides reading weights")
    engine_minutes: float = _assumed(5.0, "min", "vllm's own start-up besides that: profiling, CUDA graphs")
    light_minutes: float = _assumed(1.0, "min", "a job without GPU; neither it nor a model on the CPU is modelled")
    document_tokens: float = _assumed(1500.0, "tokens", "mean length of a document: 6,650 are about 10 M")
    prompt_tokens: float = _assumed(500.0, "tokens", "mean length of a prompt, the writer's too")
    answer_share: float = _assumed(0.2, "of max_tokens", "mean length of an answer")
    judge_tokens: float = _assumed(150.0, "tokens", "mean length of a judge's answer")
    belief_texts: float = _assumed(72.0, "texts", "belief items a checkpoint: 18 items x 2 orders x 2 options")
    belief_tokens: float = _assumed(100.0, "tokens", "mean length of a belief item")
    vocabulary: float = _assumed(150e3, "tokens", "entries of the vocabulary, embedded twice (in and out)")
    kv_width: float = _assumed(1024.0, "", "width of keys and of values: 8 heads of 128, at most the model's width")
    activation_widths: float = _assumed(17.0, "x width", "activations kept per token and block without checkpointing")
    checkpoint_widths: float = _assumed(
        2.0, "x width", "the same with checkpointing; one block has all when recomputed"
    )
    gathered_blocks: float = _assumed(2.0, "blocks", "held whole by every GPU in ZeRO-3: in use, and fetched ahead")
    logit_tokens: float = _assumed(1024.0, "tokens", "logits computed at once in training")
    overhead_gib: float = _assumed(4.0, "GiB", "context, communication buffers and fragmentation, per GPU")
    text_bytes: float = _assumed(2.0, "bytes", "a token of compressed text on disk")

    def __iter__(self) -> Iterator[tuple[Field[Any], Any]]:
        """Yield each field with its value."""
        return ((each, getattr(self, each.name)) for each in fields(self))

    def replaced(self, key: str, value: str) -> "Assumptions":
        """Return a copy in which one assumption has another value.

        Raises:
            ValueError: No such assumption, or not a value for it; one line that says what is accepted.
        """
        known = [each.name for each, _ in self]
        if key not in known:
            raise ValueError(f"unknown assumption {key}; known are {', '.join(known)}")
        try:
            accepted = float(value)
        except ValueError:
            accepted = math.nan
        if not 0 < accepted < math.inf:
            raise ValueError(f"{key} is a number above 0, not {value!r}")
        changed: dict[str, Any] = {key: accepted}
        return replace(self, **changed)


@dataclass(frozen=True)
class Cost:
    """What one job takes.

    Attributes:
        size: Key of `sizes` whose model it holds; empty for none.
        nodes: Nodes.
        gpus: GPUs on each of them.
        hours: Wall-clock hours.
        limit: Hours that it asks the cluster for; None where the plan does not compare.
        memory_gib: Peak of its fullest GPU; None without GPU.
        disk_gb: What it leaves behind.
        scratch_gb: What it holds on disk besides while it runs.
        start: Hours of an engine's start, counted in ``hours``.
    """

    size: str = ""
    nodes: int = 1
    gpus: int = 0
    hours: float = 0.0
    limit: float | None = None
    memory_gib: float | None = None
    disk_gb: float = 0.0
    scratch_gb: float = 0.0
    start: float = 0.0

    @property
    def gpu_hours(self) -> float:
        """Hours times GPUs of all nodes."""
        return self.hours * self.nodes * self.gpus


@dataclass(frozen=True)
class Reading:
    """Texts that a model is given, and the answers it writes.

    Attributes:
        texts: How many.
        prompt_tokens: Mean length of a text.
        new_tokens: Mean length of an answer; 0 if the texts are only read.
        most_tokens: Length that an answer may reach.
        batch: Texts at once.
        adapter_parameters: Parameters of all adapters that the engine holds.
        kept: What is kept of the texts read: nothing but the cache, the logits or the residual stream of all positions.
        engine: ``vllm`` shares every layer among the GPUs and refills its batch; ``transformers`` keeps one GPU busy at
            a time, and a batch waits for its longest answer.
    """

    texts: float
    prompt_tokens: float
    new_tokens: float
    most_tokens: float
    batch: int
    adapter_parameters: float
    kept: Literal["nothing", "logits", "states"] = "nothing"
    engine: Engine = "transformers"


def parameters(size: Size) -> float:
    """Return the number of parameters of a model."""
    return size.parameters * 1e9


def intermediate(size: Size, assumed: Assumptions) -> float:
    """Return the inner width f of a block's MLP, from what the other weights leave.

    N = 2 V h + layers (2 h^2 + 2 h k + 3 h f): embeddings in and out, the attention's query and output of width h,
    keys and values of width k, and the MLP's gate, up and down; at least h.
    """
    h, k = size.hidden, min(assumed.kv_width, size.hidden)
    block = (parameters(size) - 2 * assumed.vocabulary * h) / size.layers
    return max(h, (block - 2 * h * h - 2 * h * k) / (3 * h))


def lora_parameters(size: Size, rank: int, assumed: Assumptions) -> float:
    """Return the parameters of an adapter on all linear layers of the blocks: rank (in + out) each.

    Widths as in `intermediate`: query and output 2h each, keys and values h + k each, gate, up and down h + f each.
    """
    h, k, f = size.hidden, min(assumed.kv_width, size.hidden), intermediate(size, assumed)
    return rank * size.layers * (2 * 2 * h + 2 * (h + k) + 3 * (h + f))


def start_hours(size: Size, assumed: Assumptions, passes: int = 1) -> float:
    """Return hours until a GPU job computes: a fixed start, and 16-bit weights that pass the disk ``passes`` times."""
    return passes * parameters(size) * 2 / (assumed.load_gbs * GB) / HOUR + assumed.start_minutes / 60


def training_tokens(sdf: Sdf, model: str, own: int, replayed: int, assumed: Assumptions) -> float:
    """Return the tokens of a round: epochs x (those of its own documents and of replayed ones).

    Documents have their mean length; where the section names its loss tokens, these are its own.

    Args:
        sdf: The section; ``documents`` limits the corpus, ``loss_tokens`` fixes it.
        model: The model that trains.
        own: Documents of the corpus.
        replayed: Organism documents mixed in.
        assumed: The assumptions.
    """
    documents, loss_tokens = sdf.numbers(model)
    tokens = loss_tokens or min(own, documents or own) * assumed.document_tokens
    return sdf.epochs * (tokens + replayed * assumed.document_tokens)


def training_flops(size: Size) -> float:
    """Return floating-point operations per token: 4 N, or 6 N with activation checkpointing.

    The base is frozen: 2 N for the forward and 2 N for the gradient of the inputs, none for that of the weights;
    checkpointing runs the forward again. Attention scores and adapters are left out (each a few per cent).
    """
    return (6 if size.checkpointing else 4) * parameters(size)


def training_hours(size: Size, tokens: float, assumed: Assumptions) -> float:
    """Return hours of training without start-up: tokens x FLOPs a token / (GPUs x rate x share of it reached)."""
    devices = size.gpus * size.nodes
    share = assumed.share_nodes if size.nodes > 1 else assumed.share_node if devices > 1 else assumed.share_one
    return tokens * training_flops(size) / (devices * assumed.matmul_tflops * 1e12 * share) / HOUR


def training_memory(size: Size, sdf: Sdf, trained: float, frozen: float, assumed: Assumptions) -> float:
    """Return the peak GiB of a GPU in training.

    The sum of: weights / GPUs, 2 bytes a parameter (4 in fp32; fp8: 1 byte in two orientations; 4bit: 0.5,
    embeddings counted like the rest); with several GPUs (ZeRO-3) `gathered_blocks` whole blocks; adapters / GPUs, 16
    bytes a trained parameter and 4 a frozen one; activations of device_batch x length tokens; logits of
    `logit_tokens` of them; overhead.

    The 17 widths of an activation: the inputs of two norms 2, of query, key and value 1, these themselves 1.25,
    the attention's output 1, the input of gate and up 1, and gate, up and their product at 3.5 widths 10.5.

    Args:
        size: The model and its GPUs, over which ZeRO-3 shards.
        sdf: The section.
        trained: Trained parameters.
        frozen: Parameters of a frozen adapter.
        assumed: The assumptions.
    """
    devices = size.gpus * size.nodes
    width = WEIGHT_BYTES[sdf.precision]
    weights = parameters(size) * FROZEN_BYTES.get(sdf.frozen, width)
    gathered = assumed.gathered_blocks * weights / size.layers if devices > 1 else 0.0
    adapters = trained * TRAINED_BYTES + frozen * ADAPTER_BYTES
    tokens = sdf.device_batch * sdf.length
    widths = size.layers * assumed.activation_widths
    if size.checkpointing:
        widths = size.layers * assumed.checkpoint_widths + assumed.activation_widths
    activations = tokens * widths * size.hidden * width
    logits = min(tokens, assumed.logit_tokens) * assumed.vocabulary * LOGIT_BYTES
    return ((weights + adapters) / devices + gathered + activations + logits) / GIB + assumed.overhead_gib


def _cache_bytes(size: Size, width: int, assumed: Assumptions) -> float:
    """Return bytes of keys and values a token."""
    return 2 * min(assumed.kv_width, size.hidden) * size.layers * width


def reading_hours(size: Size, work: Reading, width: int, assumed: Assumptions) -> float:
    """Return hours of prompts and answers without start-up.

    Prompts: 2 N FLOPs a token at `share_one` of the rate of the busy GPUs. Answers: texts / batch batches of
    new_tokens steps, x `longest_over_mean` where a batch is not refilled. A step reads the weights and the batch's
    cache (prompt and half of the answer) once at `share_bandwidth`, or multiplies 2 N x batch, whichever takes longer
    (roofline).
    """
    working = size.gpus if work.engine == "vllm" else 1
    waiting = 1.0 if work.engine == "vllm" else assumed.longest_over_mean
    flops = working * assumed.matmul_tflops * 1e12 * assumed.share_one
    bandwidth = working * assumed.bandwidth_tbs * 1e12 * assumed.share_bandwidth
    prompts = work.texts * work.prompt_tokens * 2 * parameters(size) / flops
    batch = min(work.batch, work.texts)
    context = work.prompt_tokens + work.new_tokens / 2
    moved = parameters(size) * width + batch * context * _cache_bytes(size, width, assumed)
    step = max(moved / bandwidth, 2 * parameters(size) * batch / flops)
    steps = work.texts / batch * work.new_tokens * waiting
    return (prompts + steps * step) / HOUR


def reading_memory(size: Size, work: Reading, width: int, assumed: Assumptions) -> float:
    """Return the peak GiB of a GPU while a batch is read or written; weights and cache are spread evenly.

    The sum of: (weights + adapters + cache) / GPUs; one block's activations of the prompts that are read at once; kept
    residual streams / GPUs, or kept logits on one GPU; overhead. With `transformers` adapters are held in fp32, a
    whole batch of prompts is read at once, and every answer of it may take all it may; `vllm` holds adapters in 16
    bits, reads prompts `CHUNK` tokens at a time, and its cache holds the batch at its mean length (what finds no
    room waits).
    """
    vllm = work.engine == "vllm"
    tokens = work.batch * work.prompt_tokens
    answers = work.batch * (work.new_tokens if vllm else work.most_tokens)
    shared = parameters(size) * width + work.adapter_parameters * (2 if vllm else ADAPTER_BYTES)
    shared += (tokens + answers) * _cache_bytes(size, width, assumed)
    if work.kept == "states":
        shared += tokens * size.hidden * width * size.layers
    alone = (min(tokens, CHUNK) if vllm else tokens) * size.hidden * width * assumed.activation_widths
    if work.kept == "logits":
        alone += tokens * assumed.vocabulary * LOGIT_BYTES
    return (shared / size.gpus + alone) / GIB + assumed.overhead_gib


def known(rule: str) -> bool:
    """Return whether the model has a cost for the jobs of a rule."""
    return rule.removesuffix(SEVERAL_NODES) in (
        *TRAINED,
        *ASKED,
        *READ,
        *JUDGED,
        *LIGHT,
        "corpus",
        "hub_model",
    ) or rule.startswith(("table_", "fig"))


def _width(served: Evaluation | Judge) -> int:
    """Return bytes of a weight as it is served."""
    return 1 if served.quantization == "fp8" else WEIGHT_BYTES[served.precision]


@dataclass(frozen=True)
class Costs:
    """The costs of a study's jobs.

    Attributes:
        study: The study.
        assumed: The assumptions.
    """

    study: Study
    assumed: Assumptions = Assumptions()

    def job(self, rule: str, wildcards: Mapping[str, str]) -> Cost:
        """Return the cost of one job; of a rule that is not `known`, that of a job without GPU."""
        rule = rule.removesuffix(SEVERAL_NODES)
        if rule == "corpus":
            return self._corpus(wildcards["corpus"])
        if rule == "hub_model":
            return self._download(wildcards["model"])
        if rule in JUDGED:
            return self._judging(JUDGED[rule], wildcards["model"])
        if rule not in (*TRAINED, *ASKED, *READ):
            return self._light()
        size = self.study.models[wildcards["model"]].size
        if rule in TRAINED:
            return self._training(wildcards["model"], wildcards.get("arm"))
        return self._reading(size, self._work(rule, self.study.sizes[size]))

    def _light(self, **more: Any) -> Cost:
        return Cost(hours=self.assumed.light_minutes / 60, **more)

    def _adapter(self, size: Size, checkpoint: str) -> float:
        """Return the parameters of a checkpoint's exported adapter: an arm's holds the organism's, ranks added."""
        rank = self.study.organisms.sdf.lora.rank
        if checkpoint != ORGANISM and self.study.arms.mode != "continue":
            rank += self.study.arms.sdf.lora.rank
        return 0.0 if checkpoint == BASE else lora_parameters(size, rank, self.assumed)

    def _training(self, model: str, arm: str | None) -> Cost:
        """Return the cost of a round: the adapter stays, two checkpoints are scratch.

        The merged base of an organism stays too, for all of its arms; it is laid to the first.
        """
        name = self.study.models[model].size
        size, arms, assumed = self.study.sizes[name], self.study.arms, self.assumed
        sdf = self.study.organisms.sdf if arm is None else arms.sdf
        first = lora_parameters(size, self.study.organisms.sdf.lora.rank, assumed)
        fresh = arm is None or arms.mode != "continue"
        trained = lora_parameters(size, sdf.lora.rank, assumed) if fresh else first
        merged = arm is not None and arms.mode == "merge"
        scratch = CHECKPOINTS_KEPT * trained * CHECKPOINT_BYTES
        disk = self._adapter(size, arm or ORGANISM) * ADAPTER_BYTES
        if merged and arm == arms.names[0]:
            disk += parameters(size) * 2
        if not size.gpus:
            return self._light(size=name, disk_gb=disk / GB, scratch_gb=scratch / GB)
        frozen = first if arm is not None and arms.mode == "stack" else 0.0
        tokens = training_tokens(sdf, model, *self._documents(sdf.numbers(model)[0], arm), assumed)
        # A merge reads the weights, writes them and reads them again.
        start = start_hours(size, assumed, passes=3 if merged else 1)
        return Cost(
            name,
            size.nodes,
            size.gpus,
            start + training_hours(size, tokens, assumed),
            size.train_hours,
            training_memory(size, sdf, trained, frozen, assumed),
            disk / GB,
            scratch / GB,
        )

    def _documents(self, wanted: int | None, arm: str | None) -> tuple[int, int]:
        """Return a round's documents: of its corpus, and replayed (no more than the organism's corpus holds)."""
        corpora = self.study.corpora
        own = corpora[arm or ORGANISM].documents
        if arm is None:
            return own, 0
        return own, min(round(self.study.arms.replay * min(own, wanted or own)), corpora[ORGANISM].documents)

    def _work(self, rule: str, size: Size) -> Reading:
        """Return what a job of a model asks: the numbers of samples are those of the stage's module."""
        study, assumed, arms = self.study, self.assumed, self.study.arms.names
        evaluation, tries = study.evaluation, len(study.evaluation.tiers) * len(study.seeds.evaluation)
        answer = assumed.answer_share * evaluation.max_tokens
        if rule == "beliefs":
            held = self._held(size, [ORGANISM, *arms])
            texts = assumed.belief_texts * (2 + len(arms))
            return Reading(texts, assumed.belief_tokens, 0, 0, evaluation.batch, held, "logits")
        vectors = len(FAMILY_CONCEPT) * CONTEXTS
        if rule == "vectors":
            held, texts = self._held(size, [ORGANISM]), vectors * study.vectors.pairs * 2
            return Reading(texts, assumed.prompt_tokens + answer, 0, 0, evaluation.batch, held, "states")
        if rule == "screen_transcripts":
            held, samples = self._held(size, [ORGANISM]), 2 * study.requests.number
        elif rule == "transcripts":
            held, samples = self._held(size, arms), len(arms) * study.requests.number
        elif rule == "prompting_transcripts":
            checkpoints = [BASE, ORGANISM, *(arms if study.prompting.calibration else ())]
            snippets = 1 + sum(arm != NEUTRAL for arm in arms)
            held, samples = self._held(size, checkpoints), len(checkpoints) * snippets * study.prompting.requests
        else:
            conditions = vectors * (len(study.steering.alphas) + 2 * study.steering.controls)
            held, samples = self._held(size, [ORGANISM]), conditions * study.steering.requests
        return Reading(
            samples * tries,
            assumed.prompt_tokens,
            answer,
            evaluation.max_tokens,
            evaluation.batch,
            held,
            engine=evaluation.engine,
        )

    def _held(self, size: Size, checkpoints: list[str]) -> float:
        return sum(self._adapter(size, checkpoint) for checkpoint in checkpoints)

    def _judging(self, asked: str, model: str) -> Cost:
        """Return the cost of judging a model's samples: every vote reads a prompt with an answer in it."""
        judge = self.study.judge
        if judge is None or judge.api:
            return self._light()
        judged = self._work(asked, self.study.sizes[self.study.models[model].size])
        votes = sum(verdicts.votes for _, verdicts in judge.rubrics)
        work = Reading(
            judged.texts * votes,
            self.assumed.prompt_tokens + judged.new_tokens,
            self.assumed.judge_tokens,
            judge.max_tokens,
            judge.batch,
            0.0,
            engine=judge.engine,
        )
        return self._reading(judge.size, work, _width(judge))

    def _reading(self, name: str, work: Reading, width: int | None = None) -> Cost:
        """Return the cost of a job that samples or scores: on one node, and its texts stay."""
        size, assumed = self.study.sizes[name], self.assumed
        disk = work.texts * work.new_tokens * assumed.text_bytes / GB
        if not size.gpus:
            return self._light(size=name, disk_gb=disk)
        width = width or _width(self.study.evaluation)
        start = start_hours(size, assumed) + (assumed.engine_minutes / 60 if work.engine == "vllm" else 0.0)
        hours = start + reading_hours(size, work, width, assumed)
        memory = reading_memory(size, work, width, assumed)
        return Cost(name, 1, size.gpus, hours, size.generate_hours, memory, disk, start=start)

    def _corpus(self, corpus: str) -> Cost:
        """Return the cost of a corpus; the writer's weights are laid to the first corpus that it writes."""
        section, writer, assumed = self.study.corpora[corpus], self.study.writer, self.assumed
        disk = section.documents * assumed.document_tokens * assumed.text_bytes / GB
        if section.source != "written":
            return self._light(disk_gb=disk)
        size = self.study.sizes[writer.size]
        first = next(name for name, each in self.study.corpora.items() if each.source == "written")
        shared = (writer.hub, writer.revision) in {(m.hub, m.revision) for m in self.study.models.values()}
        if corpus == first and not shared:
            disk += parameters(size) * 2 / GB
        if not size.gpus:
            return self._light(size=writer.size, disk_gb=disk)
        new = min(assumed.document_tokens, writer.max_tokens)
        work = Reading(section.documents, assumed.prompt_tokens, new, writer.max_tokens, WRITER_BATCH, 0.0)
        hours = start_hours(size, assumed) + reading_hours(size, work, WEIGHT_BYTES["bf16"], assumed)
        memory = reading_memory(size, work, WEIGHT_BYTES["bf16"], assumed)
        return Cost(writer.size, 1, size.gpus, hours, size.generate_hours, memory, disk)

    def _download(self, model: str) -> Cost:
        """Return the cost of fetching weights: once per revision, none for a local folder."""
        section = self.study.models[model]
        same = [
            name
            for name, other in self.study.models.items()
            if (other.hub, other.revision) == (section.hub, section.revision)
        ]
        if section.hub is None or same[0] != model:
            return self._light()
        weights = parameters(self.study.sizes[section.size]) * 2
        hours = weights / (self.assumed.download_gbs * GB) / HOUR + self.assumed.light_minutes / 60
        return Cost(section.size, hours=hours, disk_gb=weights / GB)
