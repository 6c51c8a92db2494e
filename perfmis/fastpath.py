"""Fast LoRA training of a frozen Llama-shaped model on packed documents, on one GPU.

`prepare` rewires a `peft` model in place; parameters, their names and what is saved stay `peft`'s. Batches are
padding-free: one row of ``T`` tokens, documents back to back, their boundaries in ``cu_seq_lens_q``. A decoder layer
becomes one function with its gradient written out, because only so nothing is done that need not be:

* the frozen weights get two products each, and LoRA no pass of its own over a large tensor: where input and low-rank
  state stand side by side in memory, ``[x, x A'] [W, s B]'`` is one product, and so is the gradient of ``x``;
* query, key and value are one product, gate and up another;
* what lies between products (norms, rotary positions, gates, quantisation) is one kernel each, `perfmis.kernels`;
* `fuse_head` forms the gradient of the loss in the forward pass, tile by tile: two products of the head, not three.

The same code runs on a CPU, with `Plain` in place of the kernels: slow, and what the tests compare with `peft`.
"""

import inspect
import types
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from perfmis import fp8
from perfmis.fp8 import Rows
from perfmis.stage import Prose, UserError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

ATTENTION = "perfmis_varlen"
TILE = 4096  # tokens whose logits exist at a time


# Attention inside documents ------------------------------------------------------------------------------------------


def attend(
    query: Tensor, key: Tensor, value: Tensor, boundaries: Tensor, longest: int, scale: float, window: int | None = None
) -> Tensor:
    """Return causal attention inside each document.

    Args:
        query: (T, heads, dim).
        key: (T, groups, dim); each group serves ``heads / groups`` query heads.
        value: (T, groups, dim).
        boundaries: int32, (documents + 1,): where documents start, and T.
        longest: At least the length of the longest document.
        scale: Factor of the scores.
        window: How many tokens a token sees, itself among them; None for all before it.

    Returns:
        (T, heads, dim).

    Raises:
        UserError: The installed torch's kernel has no windows.
    """
    if window is not None and window >= longest:
        window = None
    if query.is_cuda:
        from torch.nn.attention.varlen import varlen_attn

        known = inspect.signature(varlen_attn).parameters
        if window is not None and "window_size" not in known:
            raise UserError("sdf.attention: varlen has no sliding windows in this version of torch; set sdpa")
        left = -1 if window is None else window - 1
        options: dict[str, Any] = {"window_size": (left, 0)} if "window_size" in known else {"is_causal": True}
        options |= {"enable_gqa": True} if "enable_gqa" in known else {}
        out: Any = varlen_attn(query, key, value, boundaries, boundaries, longest, longest, scale=scale, **options)
        return out
    document = torch.bucketize(torch.arange(len(query)), boundaries, right=True)
    mask = (document[:, None] == document[None]).tril()
    if window is not None:
        mask = mask.triu(1 - window)
    query, key, value = (x.transpose(0, 1)[None] for x in (query, key, value))
    seen = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=True)
    return seen[0].transpose(0, 1)


def register_attention() -> None:
    """Make ``attn_implementation=ATTENTION`` known to `transformers`, which builds no mask for it."""
    from transformers import AttentionInterface

    def forward(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
    ) -> tuple[Tensor, None]:
        boundaries, longest = _documents(options)
        if beyond := _beyond(module, attention_mask, options):
            raise UserError(f"sdf.attention: {type(module).__name__} has {beyond}, which varlen leaves out; set eager")
        query, key, value = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
        scale = options.get("scaling") or query.shape[-1] ** -0.5
        return attend(query, key, value, boundaries, longest, scale, options.get("sliding_window"))[None], None

    AttentionInterface.register(ATTENTION, forward)


def _beyond(module: nn.Module, mask: Any, options: dict[str, Any]) -> Prose:
    """Return what of a layer's attention `attend` does not compute, in words; nothing where it computes all."""
    present = {
        "soft caps": options.get("softcap") is not None,
        "attention sinks": options.get("s_aux") is not None,
        "a mask of its own": mask is not None,
        "attention dropout": module.training and bool(options.get("dropout")),
    }
    return " and ".join(what for what, there in present.items() if there)


def _documents(options: dict[str, Any]) -> tuple[Tensor, int]:
    """Return boundaries and greatest length from the arguments of a forward pass.

    Raises:
        UserError: They are not there: the batch is padded, or the model does not hand them on to its layers.
    """
    if options.get("cu_seq_lens_q") is None or options.get("max_length_q") is None:
        raise UserError(
            "sdf.attention: varlen needs padding-free batches whose cu_seq_lens_q and max_length_q reach every layer; "
            "set sdpa"
        )
    return options["cu_seq_lens_q"], int(options["max_length_q"])


def merge_padding(boundaries: Sequence[int], longest: int) -> list[int]:
    """Return boundaries with runs of one-token documents merged, up to ``longest``.

    Collators write each padding token as a document of its own. Such documents have nothing to predict, so merging
    them changes no loss, and it spares the attention kernel thousands of empty blocks.
    """
    merged: list[int] = []
    single = False
    for start, end in pairwise(boundaries):
        one = end - start == 1
        if not (one and single and start - merged[-1] < longest):
            merged.append(start)
        single = one
    return [*merged, boundaries[-1]]


def _merge(_module: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Hook before the decoder: merge padding once for all layers."""
    boundaries, longest = _documents(options)
    merged = torch.tensor(merge_padding(boundaries.tolist(), longest), dtype=torch.int32, device=boundaries.device)
    return args, options | {"cu_seq_lens_q": merged, "cu_seq_lens_k": merged}


# Between the products ------------------------------------------------------------------------------------------------


class Plain:
    """What lies between matrix products, in plain torch: the meaning of `perfmis.kernels`.

    Results go to ``out``, a view with room beside each row, where there is one. ``room`` asks for the result in fp8
    too, with that many columns free; None does not.
    """

    quantise = staticmethod(fp8.quantise)
    fill = staticmethod(fp8.fill)

    @staticmethod
    def normalise(
        x: Tensor, delta: Tensor | None, weight: Tensor, epsilon: float, out: Tensor, room: int | None
    ) -> tuple[Tensor, Tensor, Rows | None]:
        """Write the root-mean-square norm of ``x + delta``; return that sum, the inverse root (T,), the norm in fp8."""
        total = x if delta is None else x + delta
        wide = total.float()
        rstd = torch.rsqrt(wide.square().mean(-1) + epsilon)
        out.copy_(weight * (wide * rstd[:, None]).to(x.dtype))
        return total, rstd, None if room is None else fp8.quantise(out, room)

    @staticmethod
    def normalise_backward(
        dn: Tensor, x: Tensor, rstd: Tensor, weight: Tensor, residual: Tensor, room: int | None
    ) -> tuple[Tensor, Rows | None]:
        """Return the gradient of the norm's input, added to that of the residual stream."""
        scaled, g = x.float() * rstd[:, None], dn.float() * weight.float()
        dx = residual.float() + rstd[:, None] * (g - scaled * (g * scaled).mean(-1, keepdim=True))
        dx = dx.to(x.dtype)
        return dx, None if room is None else fp8.quantise(dx, room)

    @staticmethod
    def gate(y: Tensor, out: Tensor, room: int | None) -> Rows | None:
        """Write ``silu(gate) * up`` of ``y = [gate, up]``."""
        gate, up = y.float().chunk(2, dim=1)
        out.copy_(gate * gate.sigmoid() * up)
        return None if room is None else fp8.quantise(out, room)

    @staticmethod
    def gate_backward(y: Tensor, dx: Tensor, out: Tensor, room: int | None) -> Rows | None:
        """Write the gradient of ``y``."""
        gate, up = y.float().chunk(2, dim=1)
        sigmoid = gate.sigmoid()
        out.copy_(torch.cat([dx * up * sigmoid * (1 + gate * (1 - sigmoid)), dx * gate * sigmoid], dim=1))
        return None if room is None else fp8.quantise(out, room)

    @staticmethod
    def _rotated(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return x * cosine[:, None] + torch.cat([-second, first], dim=-1) * sine[:, None]

    @staticmethod
    def rotate(y: Tensor, cosine: Tensor, sine: Tensor, heads: int) -> None:
        """Give the first ``heads`` of ``y`` (T, any heads * dim) their rotary positions; cosine, sine: (T, dim)."""
        part = y[:, : heads * cosine.shape[1]].unflatten(1, (heads, -1))
        part.copy_(Plain._rotated(part, cosine, sine))

    @staticmethod
    def rotate_backward(
        dq: Tensor, dk: Tensor, dv: Tensor, cosine: Tensor, sine: Tensor, out: Tensor, room: int | None
    ) -> Rows | None:
        """Write the gradients of query, key and value (T, heads, dim), side by side and before rotation."""
        dq, dk = (Plain._rotated(x, cosine, -sine.roll(sine.shape[1] // 2, 1)) for x in (dq, dk))
        out.copy_(torch.cat([dq, dk, dv], dim=1).flatten(1))
        return None if room is None else fp8.quantise(out, room)

    @staticmethod
    def attend(
        query: Tensor, key: Tensor, value: Tensor, boundaries: Tensor, longest: int, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Return what `attend` returns, and what its gradient needs beside."""
        return attend(query, key, value, boundaries, longest, scale), query.new_empty(0)

    @staticmethod
    def attend_backward(
        dy: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        _out: Tensor,
        _beside: Tensor,
        boundaries: Tensor,
        longest: int,
        scale: float,
    ) -> tuple[Tensor, ...]:
        """Return the gradients of query, key and value."""
        with torch.enable_grad():
            query, key, value = (x.detach().requires_grad_() for x in (query, key, value))
            return torch.autograd.grad(attend(query, key, value, boundaries, longest, scale), (query, key, value), dy)

    @staticmethod
    def score(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return log-probability, entropy and whether the target is likeliest, (rows,) each.

        Logits become the gradient of the first. Targets are negative where there is nothing to predict: zeros there.
        """
        known = targets >= 0
        table = logits.float().log_softmax(1)
        own = table.gather(1, targets.clamp(min=0)[:, None])[:, 0]
        hit = torch.arange(logits.shape[1], device=logits.device) == targets[:, None]
        logits.copy_((hit.float() - table.exp()) * known[:, None])
        return own * known, -(table.exp() * table).sum(1) * known, (own >= table.amax(1)) & known


def _operations(x: Tensor) -> Any:
    """Return the kernels for the device of ``x``."""
    if not x.is_cuda:
        return Plain
    from perfmis import kernels

    return kernels


# Frozen linear layers with LoRA --------------------------------------------------------------------------------------


def _product(x: Tensor, y: Tensor) -> Tensor:
    """Return ``x @ y`` in fp32: what accumulates into fp32 weights is not rounded before."""
    return torch.mm(x, y, out_dtype=torch.float32) if x.is_cuda and x.dtype != torch.float32 else (x @ y).float()


class Wide(NamedTuple):
    """A matrix (T, width) and a low-rank state (T, rank), and both as one where they stand side by side in memory."""

    x: Tensor
    hidden: Tensor
    both: Tensor | None


class _Factor(NamedTuple):
    """One adapter of one linear layer: its weights and scaling, and where it stands in the stack."""

    a: nn.Parameter
    b: nn.Parameter
    scaling: float
    out: slice
    inner: slice

    @property
    def trained(self) -> bool:
        """Whether it gets gradients."""
        return self.a.requires_grad or self.b.requires_grad


class Stack:
    """Linear layers with a common input, stacked along their outputs, frozen, with their active adapters.

    One matrix holds all: ``[[W, s B], [A, 0]]``, (out + rank, in + rank), where each layer's ``s B`` stands where its
    outputs meet its ranks. In fp8 its first rows and, transposed, its first columns are two; what is needed to form
    low-rank states and gradients stays in the base model's dtype.

    Attributes:
        inputs: Width of the input, ``in``.
        outputs: Sum of the layers' outputs, ``out``.
        rank: Sum of the ranks of all adapters of all layers.
        parameters: What is trained, A and B of one adapter of one layer after the other.
    """

    def __init__(self, modules: Sequence[Any], quantised: bool) -> None:
        bases = [module.get_base_layer() for module in modules]
        sizes = [len(base.weight) for base in bases]
        example = bases[0].weight.detach()
        self.blocks: list[tuple[slice, slice, list[_Factor]]] = []
        row = column = 0
        for size, module in zip(sizes, modules, strict=True):
            out, start, factors = slice(row, row + size), column, []
            for a, b, scaling in _adapters(module):
                factors.append(_Factor(a, b, scaling, out, slice(column, column + len(a))))
                column += len(a)
            self.blocks.append((out, slice(start, column), factors))
            row += size
        self.inputs, self.outputs, self.rank = example.shape[1], row, column
        self.parameters = [x for _, _, factors in self.blocks for f in factors if f.trained for x in (f.a, f.b)]
        matrix = example.new_zeros(row + column, self.inputs + column)
        self.w, self.a, self.b = matrix[:row, : self.inputs], matrix[row:, : self.inputs], matrix[:row, self.inputs :]
        for part, base in zip(self.w.split(sizes), bases, strict=True):
            part.copy_(base.weight.detach())
            # What else reads a weight finds a view of it; or, in fp8, NaN of no size, so that it shows.
            own = example.new_full((), torch.nan).expand(part.shape) if quantised else part
            base.weight = nn.Parameter(own, requires_grad=False)
        self.eight: fp8.Weight | None = None
        self.free: int | None = None  # columns that rows in fp8 keep free
        self.left, self.right = matrix[:row], matrix[:, : self.inputs]
        if quantised:
            if example.is_cuda and any(n % 16 for n in (row, column, self.inputs)):
                raise UserError("sdf.frozen: fp8 needs widths and LoRA ranks that 16 divides; set full")
            self.free = column
            self.eight = fp8.Weight(fp8.quantise(self.w, column), fp8.quantise(self.w.t(), column))
            self.a, self.b = self.a.clone(), self.b.clone()
            self.w = self.left = self.right = example.new_empty(0)
        biases = [base.bias for base in bases]
        self.bias = None if biases[0] is None else torch.cat([bias.detach() for bias in biases])

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the adapters' weights, which optimizers change; always, as fused ones leave version counters alone."""
        for factor in [factor for _, _, factors in self.blocks for factor in factors]:
            self.a[factor.inner].copy_(factor.a)
            torch.mul(factor.b, factor.scaling, out=self.b[factor.out, factor.inner])
        if self.eight is not None:
            fill = _operations(self.a).fill
            fill(self.eight.forward, self.b)
            fill(self.eight.backward, self.a.t())

    def wide(self, like: Tensor, width: int) -> Wide:
        """Return uninitialised memory for a matrix (T, width) and the low-rank state beside it."""
        both = like.new_empty(len(like), width + self.rank)
        return Wide(both[:, :width], both[:, width:], both)

    def beside(self, x: Tensor) -> Wide:
        """Return a matrix that stands alone, with uninitialised memory for the low-rank state."""
        return Wide(x, x.new_empty(len(x), self.rank), None)

    def forward(self, x: Wide, rows: Rows | None) -> Tensor:
        """Return the stacked outputs (T, out), and fill ``x.hidden``.

        Args:
            x: Input.
            rows: It in fp8, where the weight is.
        """
        torch.mm(x.x, self.a.t(), out=x.hidden)
        if self.eight is not None and rows is not None:
            _operations(x.x).fill(rows, x.hidden)
            y = fp8.product(rows, self.eight.forward, x.x.dtype)
        elif x.both is not None:
            y = x.both @ self.left.t()
        else:
            y = (x.hidden @ self.b.t()).addmm_(x.x, self.w.t())
        return y if self.bias is None else y.add_(self.bias)

    def backward(self, dy: Wide, rows: Rows | None, x: Wide) -> tuple[Tensor, list[Tensor]]:
        """Return the gradient of the input, and those of `parameters`; fill ``dy.hidden``.

        The adapters' gradients are formed from ``x`` and ``dy``, not from their rows in fp8.

        Args:
            dy: Gradient of the outputs.
            rows: It in fp8, where the weight is.
            x: What `forward` got and filled.
        """
        torch.mm(dy.x, self.b, out=dy.hidden)
        if self.eight is not None and rows is not None:
            _operations(dy.x).fill(rows, dy.hidden)
            dx = fp8.product(rows, self.eight.backward, dy.x.dtype)
        elif dy.both is not None:
            dx = dy.both @ self.right
        else:
            dx = (dy.hidden @ self.a).addmm_(dy.x, self.w)
        da = _product(dy.hidden.t(), x.x)
        gradients = []
        for out, inner, factors in self.blocks:
            db = _product(dy.x[:, out].t(), x.hidden[:, inner])
            for factor in factors:
                if factor.trained:
                    columns = slice(factor.inner.start - inner.start, factor.inner.stop - inner.start)
                    gradients += [da[factor.inner], db[:, columns] * factor.scaling]
        return dx, gradients


def _adapters(module: Any) -> list[tuple[nn.Parameter, nn.Parameter, float]]:
    """Return the active adapters of one linear layer: A (rank, in), B (out, rank), scaling."""
    from peft.tuners.lora.layer import Linear

    if type(module) is not Linear or module.merged or module.disable_adapters:
        raise UserError(f"sdf.attention: varlen needs plain LoRA on every linear layer, not {type(module).__name__}")
    layer: Any = module
    result = []
    for name in layer.active_adapters:
        dropout = getattr(layer.lora_dropout[name], "p", 0.0)
        if dropout or name in layer.lora_variant or layer.lora_bias.get(name):
            raise UserError("sdf.attention: varlen knows no LoRA dropout, bias or variants; set sdf.lora.dropout: 0")
        result.append((layer.lora_A[name].weight, layer.lora_B[name].weight, float(layer.scaling[name])))
    return result


# A decoder layer -----------------------------------------------------------------------------------------------------

_STACKS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)


class Layer:
    """A decoder layer of the Llama and Qwen2 families: its norms, its four stacks, and its constants.

    Raises:
        UserError: Its adapters are none that `Stack` computes.
    """

    def __init__(self, block: Any, config: Any, quantised: bool) -> None:
        stacks = [[block.get_submodule(name) for name in names] for names in _STACKS]
        for module in [module for stack in stacks for module in stack]:
            _adapters(module)  # before anything is changed
        self.stacks = [Stack(stack, quantised) for stack in stacks]
        self.norms = [block.input_layernorm.weight.detach(), block.post_attention_layernorm.weight.detach()]
        self.epsilon: float = block.input_layernorm.variance_epsilon
        self.heads: int = config.num_attention_heads
        self.groups: int = config.num_key_value_heads
        self.dim: int = block.self_attn.head_dim
        self.scale: float = block.self_attn.scaling

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        return [parameter for stack in self.stacks for parameter in stack.parameters]

    def heads_of(self, y: Tensor) -> tuple[Tensor, ...]:
        """Return query, key and value, (T, heads, dim) each, from the outputs of the first stack."""
        return y.unflatten(1, (-1, self.dim)).split([self.heads, self.groups, self.groups], dim=1)


def _check_decoder(decoder: Any, config: Any) -> None:
    """Raise UserError where a decoder does not have the parts that `prepare` rewires."""
    parts: dict[Prose, bool] = {
        "no embed_tokens": hasattr(decoder, "embed_tokens"),
        "no layers": isinstance(getattr(decoder, "layers", None), nn.ModuleList),
        "another last norm": hasattr(getattr(decoder, "norm", None), "variance_epsilon"),
    }
    _refuse(decoder, config, [what for what, there in parts.items() if not there][:1])


def _check(block: Any, config: Any, longest: int | None) -> None:
    """Raise UserError where a decoder layer does more than `Layer`, or is made of other parts."""
    names = {name for name, _ in block.named_modules()}
    _refuse(block, config, [f"no {name}" for stack in _STACKS for name in stack if name not in names][:1])
    attention = block.self_attn
    window = _window(attention, config)
    unlike: dict[Prose, bool] = {
        "query or key norms": hasattr(attention, "q_norm") or hasattr(attention, "k_norm"),
        f"a sliding window of {window} tokens": window is not None and (longest is None or window < longest),
        "attention dropout": bool(getattr(config, "attention_dropout", 0)),
        f"the activation {config.hidden_act}": config.hidden_act not in ("silu", "swish"),
        "other norms": any(
            not hasattr(getattr(block, name, None), "variance_epsilon")
            for name in ("input_layernorm", "post_attention_layernorm")
        ),
        "norms after its sublayers": hasattr(block, "pre_feedforward_layernorm"),
        "partial rotary positions": getattr(config, "partial_rotary_factor", None) not in (None, 1.0),
        "layers without positions": not getattr(attention, "use_rope", True),
        "a scaled residual": getattr(block, "residual_multiplier", 1.0) != 1.0,
        "soft caps": _capped(config),
        "biases on some linear layers": any(len({_biased(block, name) for name in stack}) > 1 for stack in _STACKS),
    }
    _refuse(block, config, [what for what, present in unlike.items() if present])


def _window(attention: Any, config: Any) -> int | None:
    """Return how many tokens a layer's attention sees; some families say so in the configuration alone."""
    if hasattr(attention, "sliding_window"):
        own: int | None = attention.sliding_window
        return own
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and kinds[attention.layer_idx] == "full_attention":
        return None
    stated: int | None = getattr(config, "sliding_window", None)
    return stated if getattr(config, "use_sliding_window", True) else None


def _capped(config: Any) -> bool:
    return getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None


def _biased(block: Any, name: str) -> bool:
    return block.get_submodule(name).bias is not None


def _refuse(module: Any, config: Any, found: Sequence[str]) -> None:
    if found:
        what, other = " and ".join(found), "eager" if _capped(config) else "sdpa"
        raise UserError(f"sdf.attention: {type(module).__name__} has {what}, not for varlen on one GPU; set {other}")


class _Decode(torch.autograd.Function):
    """A decoder layer and its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        cosine: Tensor,
        sine: Tensor,
        boundaries: Tensor,
        longest: int,
        layer: Layer,
        *_parameters: nn.Parameter,
    ) -> Tensor:
        do = _operations(x)
        qkv, o, gate_up, down = layer.stacks
        n1 = qkv.wide(x, x.shape[1])
        _, rstd1, rows = do.normalise(x, None, layer.norms[0], layer.epsilon, n1.x, qkv.free)
        y = qkv.forward(n1, rows)
        do.rotate(y, cosine, sine, layer.heads + layer.groups)
        seen, beside = do.attend(*layer.heads_of(y), boundaries, longest, layer.scale)
        attended = o.beside(seen.flatten(1))
        delta = o.forward(attended, None if o.free is None else do.quantise(attended.x, o.free))
        n2 = gate_up.wide(x, x.shape[1])
        total, rstd2, rows = do.normalise(x, delta, layer.norms[1], layer.epsilon, n2.x, gate_up.free)
        gates = gate_up.forward(n2, rows)
        gated = down.wide(x, down.inputs)
        rows = do.gate(gates, gated.x, down.free)
        ctx.save_for_backward(
            x,
            cosine,
            sine,
            boundaries,
            n1.both,
            rstd1,
            y,
            seen,
            beside,
            attended.hidden,
            total,
            n2.both,
            rstd2,
            gates,
            gated.both,
        )
        ctx.layer, ctx.longest = layer, longest
        return down.forward(gated, rows).add_(total)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        layer: Layer = ctx.layer
        dy = gradients[0].contiguous()
        do = _operations(dy)
        qkv, o, gate_up, down = layer.stacks
        (x, cosine, sine, boundaries, n1, rstd1, y, seen, beside, hidden, total, n2, rstd2, gates, gated) = (
            ctx.saved_tensors
        )
        rows = None if down.free is None else do.quantise(dy, down.free)
        dx, of_down = down.backward(down.beside(dy), rows, _wide(gated, down.inputs))
        dgates = gate_up.wide(dy, gate_up.outputs)
        rows = do.gate_backward(gates, dx, dgates.x, gate_up.free)
        dx, of_gate_up = gate_up.backward(dgates, rows, _wide(n2, gate_up.inputs))
        del dgates
        dtotal, rows = do.normalise_backward(dx, total, rstd2, layer.norms[1], dy, o.free)
        dx, of_o = o.backward(o.beside(dtotal), rows, Wide(seen.flatten(1), hidden, None))
        dheads = do.attend_backward(
            dx.view_as(seen), *layer.heads_of(y), seen, beside, boundaries, ctx.longest, layer.scale
        )
        dqkv = qkv.wide(dy, qkv.outputs)
        rows = do.rotate_backward(*dheads, cosine, sine, dqkv.x, qkv.free)
        dx, of_qkv = qkv.backward(dqkv, rows, _wide(n1, qkv.inputs))
        dx, _ = do.normalise_backward(dx, x, rstd1, layer.norms[0], dtotal, None)
        return dx, None, None, None, None, None, *of_qkv, *of_o, *of_gate_up, *of_down


class _Normalise(torch.autograd.Function):
    """The norm before the head."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        y = torch.empty_like(x)
        _, rstd, _ = _operations(x).normalise(x, None, weight, epsilon, y, None)
        ctx.save_for_backward(x, rstd, weight)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        x, rstd, weight = ctx.saved_tensors
        dy = gradients[0].contiguous()
        return _operations(x).normalise_backward(dy, x, rstd, weight, torch.zeros_like(x), None)[0], None, None


def _wide(both: Tensor, width: int) -> Wide:
    """Return a matrix with the low-rank state beside it."""
    return Wide(both[:, :width], both[:, width:], both)


# The model -----------------------------------------------------------------------------------------------------------


def prepare(network: "PeftModel", *, fp8: bool, checkpointing: bool, longest: int | None = None) -> None:
    """Rewire a model with LoRA, in place, to train fast on padding-free batches.

    Call it once adapters are active and frozen as wanted: what is active now is what is trained. The model can then
    no longer generate; load it anew for that.

    Args:
        network: Llama- or Qwen2-shaped causal language model on one device, with plain LoRA on every linear layer of
            its decoder; several adapters may be active, some of them frozen.
        fp8: Whether to replace the decoder's frozen weights by 8-bit floats.
        checkpointing: Whether to recompute activations in the backward pass: less memory, a third more work.
        longest: Tokens of the longest document, if that is known: a sliding window that it fits into is none.

    Raises:
        UserError: The model is not of that shape; nothing is changed then.
    """
    model: Any = network.get_base_model()
    decoder: Any = model.base_model
    _check_decoder(decoder, model.config)
    for block in decoder.layers:
        _check(block, model.config, longest)
    if len({parameter.device for parameter in model.parameters()}) > 1:
        raise UserError("sdf.attention: varlen needs the model whole on one device; set sdpa, or gpus: 1")
    if decoder.embed_tokens.weight.is_cuda and decoder.embed_tokens.weight.dtype != torch.bfloat16:
        raise UserError("sdf.attention: varlen needs sdf.precision: bf16 on a GPU")
    for block in decoder.layers:
        block.forward = types.MethodType(_forward(Layer(block, model.config, fp8)), block)

    def normalise(norm: Any, hidden_states: Tensor) -> Tensor:
        flat = hidden_states.flatten(0, -2)
        y: Tensor = _Normalise.apply(flat, norm.weight.detach(), norm.variance_epsilon)
        return y.view_as(hidden_states)

    decoder.norm.forward = types.MethodType(normalise, decoder.norm)

    decoder.register_forward_pre_hook(_merge, with_kwargs=True)
    if checkpointing:
        network.gradient_checkpointing_enable({"use_reentrant": False})
    else:
        network.gradient_checkpointing_disable()


def _forward(layer: Layer) -> Any:
    """Return the ``forward`` of a decoder layer, as `transformers` calls it."""

    def forward(
        _block: nn.Module, hidden_states: Tensor, *, position_embeddings: tuple[Tensor, Tensor], **options: Any
    ) -> Tensor:
        boundaries, longest = _documents(options)
        cosine, sine = (x.flatten(0, -2) for x in position_embeddings)
        for stack in layer.stacks:
            stack.refresh()
        with torch.autocast(hidden_states.device.type, enabled=False):
            y: Tensor = _Decode.apply(
                hidden_states.flatten(0, -2), cosine, sine, boundaries, longest, layer, *layer.parameters
            )
        return y.view_as(hidden_states)

    return forward


# The head ------------------------------------------------------------------------------------------------------------


class _Head(torch.autograd.Function):
    """Log-probabilities of targets; the gradient of each row is formed at once and scaled in the backward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        do = _operations(hidden)
        gradient = torch.empty_like(hidden)
        logits = hidden.new_empty(min(TILE, len(hidden)), len(weight))
        rows = []
        for start in range(0, len(hidden), TILE):
            part = slice(start, min(start + TILE, len(hidden)))
            tile = logits[: part.stop - start]
            torch.mm(hidden[part], weight.t(), out=tile)
            rows.append(do.score(tile, targets[part]))
            torch.mm(tile, weight, out=gradient[part])
        ctx.save_for_backward(gradient)
        scores, entropy, top = (torch.cat(column) for column in zip(*rows, strict=True))
        ctx.mark_non_differentiable(entropy, top)
        return scores, entropy, top

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None]:
        (saved,) = ctx.saved_tensors
        return saved * gradients[0][:, None].to(saved.dtype), None, None


def log_probabilities(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what a frozen head says of the targets, without ever holding all logits.

    Args:
        hidden: Last hidden states, (T, width); gets a gradient.
        weight: Of the head, (vocabulary, width); frozen.
        targets: (T,); -100 where there is nothing to predict, with zeros in the results.

    Returns:
        Log-probability of each target (differentiable, fp32), entropy, and whether the target is likeliest; each (T,).
    """
    with torch.autocast(hidden.device.type, enabled=False):
        result: tuple[Tensor, Tensor, Tensor] = _Head.apply(hidden.to(weight.dtype), weight.detach(), targets)
    return result


def fuse_head(model: "PreTrainedModel") -> None:
    """Replace the fused head that trl's `SFTTrainer` puts on a model by one for a frozen head.

    trl's forms the logits again in the backward pass; without a gradient of the head that is a third of its work. Call
    it on the base model (``network.get_base_model()``) after the trainer was made.
    """
    inner: Any = model
    original = inner.forward
    if getattr(inner.get_output_embeddings(), "bias", None) is not None:
        raise UserError("sdf.attention: varlen knows no head with a bias; set sdpa")

    def forward(
        self: Any,
        *args: Any,
        fused_lm_head: bool = False,
        labels: Tensor | None = None,
        num_items_in_batch: Any = None,
        **options: Any,
    ) -> Any:
        if not fused_lm_head or labels is None:
            return original(*args, labels=labels, **options)
        hidden = self.base_model(*args, **options | {"use_cache": False}).last_hidden_state
        # Every position is scored, so that nothing waits for their number; the last of a row has nothing to predict.
        targets = pad(labels[:, 1:], (0, 1), value=-100)
        found = log_probabilities(hidden.flatten(0, 1), self.get_output_embeddings().weight, targets.flatten())
        scores, entropy, top = (x.view_as(targets)[:, :-1] for x in found)
        mask = targets[:, :-1] != -100
        items = mask.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        return types.SimpleNamespace(
            loss=-scores.sum() / items,
            log_probs=scores,
            entropy=entropy,
            is_top1=top,
            label_mask=mask,
            log_sum_sq_probs=None,
            mean_logits=None,
            aux_loss=None,
        )

    inner.forward = types.MethodType(forward, inner)
