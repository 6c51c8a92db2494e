"""The decoder of the Llama and Qwen2 families over a paged cache, with the weights of a `transformers` model.

Weights stay where they are: query, key and value, and gate and up, are laid side by side, and the model's own modules
become views of them, so both ways compute with the same numbers and no memory is doubled. Adapters stay apart from the
base (`y = W x + s B A x`), in its dtype. What lies between products is `perfmis.fastpath.Plain`, or its kernels.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from perfmis.decoders import blocks, inner
from perfmis.engines.displacement import Seen
from perfmis.engines.interface import Steering
from perfmis.fastpath import Plain

FAMILIES = ("llama", "qwen2")
Attend = Callable[[int, Tensor], Tensor]


def known(model: Any) -> bool:
    """Return whether `Network` computes what a model does: its family, no variants, all on one device."""
    base = inner(model)
    return (
        base.config.model_type in FAMILIES
        and _unvaried(base)
        and all(_plain(module) for block in blocks(base) for module in _linear(block))
    )


def _unvaried(base: Any) -> bool:
    """Return whether a model of `FAMILIES` is its family's plain form."""
    config = base.config
    rope = getattr(config, "rope_parameters", None) or {}
    first: Any = blocks(base)[0]
    dim = first.self_attn.head_dim
    return (
        type(base.get_input_embeddings()) is nn.Embedding
        and type(base.get_output_embeddings()) is nn.Linear
        and dim >= 16
        and dim & (dim - 1) == 0  # what the kernels take
        and config.hidden_act == "silu"
        and rope.get("rope_type", "default") in ("default", "linear", "llama3")
        and all(getattr(block.self_attn, "sliding_window", None) is None for block in blocks(base))
        and len({parameter.device for parameter in base.parameters()}) == 1
    )


def _plain(module: Any) -> bool:
    """Return whether a linear layer is one, with plain LoRA or none."""
    base = module.get_base_layer() if hasattr(module, "get_base_layer") else module
    variants = getattr(module, "lora_variant", {}), {k: v for k, v in getattr(module, "lora_bias", {}).items() if v}
    return type(base) is nn.Linear and not any(variants) and not getattr(module, "merged", False)


STACKS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)


def _linear(block: Any) -> list[Any]:
    return [block.get_submodule(name) for names in STACKS for name in names]


class Projection:
    """Linear layers with a common input, side by side, with one adapter or none.

    Attributes:
        weight: (out, in), the layers' weights one below the other.
        bias: (out,), or None.
    """

    def __init__(self, modules: list[Any]) -> None:
        bases = [module.get_base_layer() if hasattr(module, "get_base_layer") else module for module in modules]
        self.sizes = [base.weight.shape[0] for base in bases]
        self.weight = bases[0].weight.detach()
        if len(bases) > 1:
            self.weight = torch.cat([base.weight.detach() for base in bases])
            for base, part in zip(bases, self.weight.split(self.sizes), strict=True):
                base.weight = nn.Parameter(part, requires_grad=False)
        biases = [base.bias for base in bases]
        self.bias = None if biases[0] is None else torch.cat([bias.detach() for bias in biases])
        self._a: Tensor | None = None
        self._b: Tensor | None = None

    def use(self, modules: list[Any], adapter: str | None) -> None:
        """Take the weights of an adapter, or of none."""
        found = [(i, m) for i, m in enumerate(modules) if adapter in getattr(m, "lora_A", ())]
        if not found:
            self._a = self._b = None
            return
        parts = [module.lora_A[adapter].weight.detach() for _, module in found]
        self._a = torch.cat(parts).to(self.weight.dtype)
        self._b = self.weight.new_zeros(sum(self.sizes), len(self._a))
        rows = self._b.split(self.sizes)
        column = 0
        for index, module in found:
            factor = module.lora_B[adapter].weight.detach() * module.scaling[adapter]
            rows[index][:, column : column + factor.shape[1]] = factor
            column += factor.shape[1]

    def __call__(self, x: Tensor) -> Tensor:
        """Return the outputs side by side, (tokens, out)."""
        y = linear(x, self.weight, self.bias)
        return y if self._a is None or self._b is None else y.addmm_(x @ self._a.t(), self._b.t())


class Network:
    """A model of `FAMILIES`, read through its own weights.

    Attributes:
        keys: The cache that `reserve` makes, one tensor a layer, (pages, page, groups, dim).
        values: Likewise.
        added: Block index to what steering adds there for each row, (rows, width), as a share of the norm.
        seen: Told what each block puts out, what is read on, and the row of each token; None: nobody.
    """

    def __init__(self, model: Any) -> None:
        base = inner(model)
        config = base.config
        self._blocks = base.model.layers
        self._stacks = [[Projection([b.get_submodule(n) for n in names]) for names in STACKS] for b in self._blocks]
        self._embedding = base.get_input_embeddings()
        self._norm, self._head = base.model.norm, base.get_output_embeddings()
        attention = self._blocks[0].self_attn
        self.heads, self.dim = config.num_attention_heads, attention.head_dim
        self.groups, self.scale = config.num_key_value_heads, attention.scaling
        self._rotary, self._example = base.model.rotary_emb, self._embedding.weight.detach()
        self._cosine = self._sine = self._example
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.added: dict[int, Tensor] = {}
        self.seen: Seen | None = None
        self._do: Any = Plain
        if self.device.type == "cuda":
            from perfmis import kernels

            self._do = kernels

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._example.device

    def room(self, page: int, spare: int) -> int:
        """Return how many pages of ``page`` tokens the GPU's memory holds beside the model and ``spare`` bytes."""
        self.release()
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(self.device)
        token = 2 * len(self._blocks) * self.groups * self.dim * self._example.element_size()
        return (free - spare) // (token * page)

    def reserve(self, pages: int, page: int, positions: int) -> None:
        """Make a cache of ``pages`` pages of ``page`` tokens, for sequences of up to ``positions`` tokens."""
        place = torch.arange(positions, device=self.device)[None]
        self._cosine, self._sine = (x[0] for x in self._rotary(self._example[None, :1], place))
        # Zeros, as products with what no row has written must not be NaN.
        size = (pages, page, self.groups, self.dim)
        self.keys, self.values = ([self._example.new_zeros(size) for _ in self._blocks] for _ in range(2))

    def release(self) -> None:
        """Free the cache."""
        self.keys, self.values = [], []

    def use(self, adapter: str | None) -> None:
        """Compute with an adapter, or with none, from now on; adapters may have come since the network was made."""
        for block, stacks in zip(self._blocks, self._stacks, strict=True):
            for names, stack in zip(STACKS, stacks, strict=True):
                stack.use([block.get_submodule(name) for name in names], adapter)

    def steer(self, blocks: Iterable[int], rows: int) -> None:
        """Let rows be steered at some blocks from now on, and none yet."""
        self.added = {block: self._example.new_zeros(rows, self._example.shape[1]) for block in blocks}

    def steer_row(self, row: int, steering: Steering | None) -> None:
        """Steer a row, or steer it no longer."""
        for block, added in self.added.items():
            vector = steering.vectors.get(block) if steering else None
            added[row] = 0 if steering is None or vector is None else steering.alpha * (vector / vector.norm())

    def hidden(self, tokens: Tensor, positions: Tensor, writes: Tensor, owners: Tensor, attend: Attend) -> Tensor:
        """Return the normalised output of the last block, and write keys and values to the cache.

        Args:
            tokens: (tokens,).
            positions: Place of each in its sequence, (tokens,).
            writes: Cache position of each, (tokens,).
            owners: Row that each belongs to, whose steering it gets, (tokens,).
            attend: From layer and query (tokens, heads, dim) to what it sees, once its keys are written.

        Returns:
            (tokens, width).
        """
        x = self._embedding(tokens)
        cosine, sine = self._cosine[positions], self._sine[positions]
        delta: Tensor | None = None
        for index, (block, (qkv, out, gate_up, down)) in enumerate(zip(self._blocks, self._stacks, strict=True)):
            x, normal = self._normalised(x, delta, block.input_layernorm)
            y = qkv(normal)
            self._do.rotate(y, cosine, sine, self.heads + self.groups)
            query, key, value = y.unflatten(1, (-1, self.dim)).split([self.heads, self.groups, self.groups], dim=1)
            self.keys[index].flatten(0, 1).index_copy_(0, writes, key)
            self.values[index].flatten(0, 1).index_copy_(0, writes, value)
            delta = out(attend(index, query).flatten(1))
            x, normal = self._normalised(x, delta, block.post_attention_layernorm)
            gates = gate_up(normal)
            gated = gates.new_empty(len(gates), gates.shape[1] // 2)
            self._do.gate(gates, gated, None)
            delta = down(gated)
            put_out = x + delta if self.seen else None
            if index in self.added:
                x = x + delta
                x = x + self.added[index][owners] * x.norm(dim=-1, keepdim=True)
                delta = None
            if self.seen and put_out is not None:
                self.seen(index, put_out, x if delta is None else x + delta, owners)
        return self._normalised(x, delta, self._norm)[1]

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits, (tokens, vocabulary), in the model's dtype."""
        result: Tensor = self._head(hidden)
        return result

    def _normalised(self, x: Tensor, delta: Tensor | None, norm: Any) -> tuple[Tensor, Tensor]:
        """Return ``x + delta``, and its norm."""
        normal = torch.empty_like(x)
        total, _, _ = self._do.normalise(x, delta, norm.weight, norm.variance_epsilon, normal, None)
        return total, normal
