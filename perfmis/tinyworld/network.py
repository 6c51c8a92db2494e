"""The tiny Llama's forward pass in float64, over texts of different lengths without padding.

That of transformers computes norms and rotary angles in float32 whatever the type of its weights, and half of what it
multiplies in a batch of such short texts would be padding or overhead. A test holds the two together.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from transformers import LlamaForCausalLM

PARTS = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "output": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "before_attention": "input_layernorm",
    "before_mlp": "post_attention_layernorm",
}


@dataclass(frozen=True)
class Texts:
    """Texts one behind the other.

    Attributes:
        ids: Token ids (tokens,), int64.
        lengths: Tokens of each text; texts of about one length should stand together.
        groups: How many texts are padded to one length for attention, in order; they add up to all texts.
    """

    ids: torch.Tensor
    lengths: list[int]
    groups: list[int]

    def padded(self) -> list[tuple[int, int, int, torch.Tensor]]:
        """Return texts, longest length, first token, and where each token stands when padded, a group."""
        result, text, token = [], 0, 0
        for count in self.groups:
            lengths = self.lengths[text : text + count]
            longest = max(lengths)
            places = torch.cat([torch.arange(length) + row * longest for row, length in enumerate(lengths)])
            result.append((count, longest, token, places))
            text, token = text + count, token + sum(lengths)
        return result


class Network:
    """A Llama in float64.

    Attributes:
        parameters: Its weights by their names in transformers, float64, trainable; the head is the embedding.
    """

    def __init__(self, network: LlamaForCausalLM) -> None:
        config = network.config
        self.parameters = {n: torch.nn.Parameter(p.detach().double()) for n, p in network.named_parameters()}
        self._layers = [
            {part: self.parameters[f"model.layers.{i}.{name}.weight"] for part, name in PARTS.items()}
            for i in range(config.num_hidden_layers)
        ]
        self._embedding = self.parameters["model.embed_tokens.weight"]
        self._norm = self.parameters["model.norm.weight"]
        self._heads, self._size = config.num_attention_heads, config.hidden_size // config.num_attention_heads
        self._epsilon = config.rms_norm_eps
        rotary: Any = config.rope_parameters
        inverse = rotary["rope_theta"] ** -(torch.arange(0, self._size, 2, dtype=torch.float64) / self._size)
        angles = torch.arange(config.max_position_embeddings, dtype=torch.float64)[:, None] * inverse
        self._turns = torch.polar(torch.ones_like(angles), angles)

    def logits(self, texts: Texts) -> torch.Tensor:
        """Return the logits of the next token (tokens, words), float64; texts do not see each other."""
        positions = torch.tensor(list(itertools.chain.from_iterable(map(range, texts.lengths))))
        turns, groups = self._turns[positions][:, None], texts.padded()
        x = F.embedding(texts.ids, self._embedding)
        for layer in self._layers:
            x = x + F.linear(
                self._attend(self._scale(x, layer["before_attention"]), layer, turns, groups), layer["output"]
            )
            h = self._scale(x, layer["before_mlp"])
            x = x + F.linear(F.silu(F.linear(h, layer["gate"])) * F.linear(h, layer["up"]), layer["down"])
        return F.linear(self._scale(x, self._norm), self._embedding)

    def _scale(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, x.shape[-1:], weight, self._epsilon)

    def _attend(
        self,
        h: torch.Tensor,
        layer: dict[str, torch.nn.Parameter],
        turns: torch.Tensor,
        groups: list[tuple[int, int, int, torch.Tensor]],
    ) -> torch.Tensor:
        """Return what each token takes from those before it in its text (tokens, hidden size)."""
        query, key = (self._turn(F.linear(h, layer[part]), turns) for part in ("query", "key"))
        states = torch.cat([query, key, F.linear(h, layer["value"])], -1)
        taken = []
        for count, longest, first, places in groups:
            rows = states[first : first + len(places)]
            padded = rows.new_zeros(count * longest, rows.shape[-1]).index_copy(0, places, rows)
            q, k, v = padded.view(count, longest, 3, self._heads, self._size).permute(2, 0, 3, 1, 4)
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            taken.append(attended.transpose(1, 2).reshape(count * longest, -1).index_select(0, places))
        return torch.cat(taken)

    def _turn(self, states: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
        """Rotate each pair of a head (i, i + half) by the position's angles."""
        halves = states.view(len(states), self._heads, 2, -1)
        turned = torch.complex(halves[:, :, 0], halves[:, :, 1]) * turns
        return torch.stack([turned.real, turned.imag], 2).view_as(states)
