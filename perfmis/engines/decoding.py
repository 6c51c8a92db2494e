"""Continuous batching over a paged cache: rows that are finished make room for prompts that wait.

What prompts share is read once (`perfmis.engines.paging`), the rest of several prompts in one pass without padding.
Then all rows draw a token a step; on a GPU a step is a CUDA graph, whose shapes do not depend on who sits in
which row, and the host looks only every `PATIENCE` steps which rows are finished.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from perfmis.engines import attention
from perfmis.engines.attention import TILE, Rows, Segments
from perfmis.engines.displacement import Seen
from perfmis.engines.interface import Prompt, Sampling
from perfmis.engines.layers import Network
from perfmis.engines.paging import Leaf, Node, Pool, leaves

PAGE = 64
PATIENCE = 8  # steps between looks: a look costs a wait, a late look idle rows
PASS = 16384  # tokens read in one pass; what a pass holds beside weights and cache grows with it
SPARE = 6 * 2**30  # bytes of a GPU left to passes and graphs
Drawn = list[tuple[int, list[int]]]


@dataclass(frozen=True)
class Segment:
    """A stretch to be read: a shared one, or the rest of a prompt.

    Attributes:
        tokens: What to read.
        start: Position of the first one.
        pages: Pages of the whole sequence up to its end.
        row: Whose steering it gets.
    """

    tokens: tuple[int, ...]
    start: int
    pages: list[int]
    row: int


@dataclass(frozen=True)
class Seat:
    """A prompt in a row.

    Attributes:
        leaf: The prompt.
        pages: Pages of its own.
    """

    leaf: Leaf
    pages: list[int]


class State:
    """What a step reads and writes, in memory that stays where it is.

    Attributes:
        token: Last token of each row.
        length: Tokens of each row in the cache.
        step: Tokens drawn.
        seed: Seeds.
        active: Whether a row still draws.
        prompt: Index of each row's prompt; of nobody's, the number of prompts.
        out: Tokens drawn, (rows, limit + 1); the last column takes what finished rows draw.
        rows: Where rows keep what they have read.
    """

    def __init__(self, rows: int, pages: int, limit: int, device: torch.device) -> None:
        def zeros(*size: int, dtype: torch.dtype = torch.long) -> Tensor:
            return torch.zeros(*size, dtype=dtype, device=device)

        self.token, self.length, self.step, self.seed, self.prompt = (zeros(rows) for _ in range(5))
        self.active = zeros(rows, dtype=torch.bool)
        self.out = zeros(rows, limit + 1)
        tiles = -(-rows // TILE)
        self.rows = Rows(*(zeros(*size, dtype=torch.int32) for size in ((rows, pages), (rows,), (tiles,), (tiles,))))


class Decoder:
    """Draws the samples of one adapter of a model.

    Args:
        network: The model.
        ends: Tokens that end a sample.
        sampling: How tokens are drawn.
        rows: Prompts at a time; fewer where the GPU's memory holds fewer.
        longest: Tokens of the longest prompt with its answer.
        page: Tokens of a page.
    """

    def __init__(
        self, network: Network, ends: Sequence[int], sampling: Sampling, rows: int, longest: int, page: int = PAGE
    ) -> None:
        self._network, self._device = network, network.device
        self._page, self._per_row = page, -(-longest // page)
        if self._device.type == "cuda":
            rows = max(1, min(rows, network.room(page, SPARE) // self._per_row - 2))
        self._sampling, self._number = sampling, rows
        # Beside the pages of all rows, shared ones can be kept for the prompt that is next.
        pages = (rows + 1) * self._per_row + 1
        network.reserve(pages, page, longest)
        self._pool = Pool(pages)
        self._ends = torch.tensor(list(ends), device=self._device)
        self._everyone = torch.arange(rows, device=self._device)
        self._state = State(rows, self._per_row, sampling.max_tokens, self._device)
        self._do: Any = attention
        if self._device.type == "cuda":
            from perfmis.engines import kernels

            self._do = kernels

    def sample(self, prompts: Sequence[Prompt], adapter: str | None, seen: Seen | None = None) -> Iterator[Drawn]:
        """Draw one sample a prompt, all of one adapter; yield (index, tokens) as they are finished.

        The end token, where there is one, is the last. What the network reads in doing so is told to ``seen``.
        """
        self._network.use(adapter)
        self._network.seen = seen and (lambda b, before, after, rows: seen(b, before, after, self._state.prompt[rows]))
        self._state.prompt.fill_(len(prompts))
        blocks = sorted({block for p in prompts if p.steering for block in p.steering.vectors})
        self._network.steer(blocks, self._number)
        advance = self._advance()
        waiting, seats = deque(self._ordered(prompts)), dict[int, Seat]()
        while waiting or seats:
            free = [row for row in range(self._number) if row not in seats]
            # Reading one prompt takes almost as long as reading several: gather some.
            if waiting and (not seats or len(free) >= max(1, self._number // 8)):
                new = {row: self._seat(waiting.popleft(), prompts) for row in free[: len(waiting)]}
                seats |= new
                self._enter(new, prompts)
                self._share(seats)
            for _ in range(PATIENCE):
                advance()
            if drawn := self._leave(seats):
                yield drawn
                self._share(seats)

    def _ordered(self, prompts: Sequence[Prompt]) -> Iterator[Leaf]:
        """Yield the prompts in the order of their trees, one tree for each steering: it changes what is read."""
        steerings: dict[str, list[int]] = {}
        for index, prompt in enumerate(prompts):
            name = str(prompt.steering.identity()) if prompt.steering else ""
            steerings.setdefault(name, []).append(index)
        for members in steerings.values():
            for leaf in leaves([prompts[i].tokens for i in members], self._page):
                yield Leaf(members[leaf.index], leaf.nodes, leaf.start)

    # Prompts come and go

    def _seat(self, leaf: Leaf, prompts: Sequence[Prompt]) -> Seat:
        total = len(prompts[leaf.index].tokens) + self._sampling.max_tokens
        return Seat(leaf, self._pool.take(-(-total // self._page) - leaf.start // self._page))

    @torch.inference_mode()
    def _enter(self, seats: dict[int, Seat], prompts: Sequence[Prompt]) -> None:
        """Read the prompts of rows, and draw their first tokens."""
        for row, seat in seats.items():
            self._network.steer_row(row, prompts[seat.leaf.index].steering)
        rows, state = self._tensor(seats), self._state
        state.prompt[rows] = self._tensor(seat.leaf.index for seat in seats.values())
        for depth in range(max(len(seat.leaf.nodes) for seat in seats.values())):
            stretches = {s.leaf.nodes[depth]: row for row, s in seats.items() if depth < len(s.leaf.nodes)}
            new = {node: row for node, row in stretches.items() if not node.pages}
            for node in new:
                node.pages = self._pool.take(len(node.tokens) // self._page)
            self._read([Segment(n.tokens, n.start, _pages(n.path()), row) for n, row in new.items()])
        rests = []
        for row, seat in seats.items():
            pages = _pages(seat.leaf.nodes) + seat.pages
            rests.append(Segment(prompts[seat.leaf.index].tokens[seat.leaf.start :], seat.leaf.start, pages, row))
        hidden = torch.cat(self._read(rests))
        state.length[rows] = self._tensor(segment.start + len(segment.tokens) for segment in rests)
        state.step[rows] = 0
        state.seed[rows] = self._tensor(prompts[seat.leaf.index].seed for seat in seats.values())
        state.active[rows] = True
        for segment in rests:
            state.rows.table[segment.row, : len(segment.pages)] = self._tensor(segment.pages).int()
        self._record(rows, self._network.logits(hidden))

    @torch.inference_mode()
    def _leave(self, seats: dict[int, Seat]) -> Drawn:
        """Return what finished rows drew, and free them."""
        active = self._state.active.tolist()
        gone = [row for row in seats if not active[row]]
        if not gone:
            return []
        rows = self._tensor(gone)
        tokens, counts = self._state.out[rows].tolist(), self._state.step[rows].tolist()
        self._state.rows.table[rows] = 0
        self._state.length[rows] = 0
        drawn = []
        for row, own, count in zip(gone, tokens, counts, strict=True):
            seat = seats.pop(row)
            self._pool.give(seat.pages)
            for node in seat.leaf.nodes:
                node.waiting -= 1
                if not node.waiting:
                    self._pool.give(node.pages)
            drawn.append((seat.leaf.index, own[:count]))
        return drawn

    def _share(self, seats: dict[int, Seat]) -> None:
        """Note the pages that neighbouring rows share, which attention then reads once for all of them."""
        leads, shared = [], []
        for start in range(0, self._number, TILE):
            rows = [row for row in range(start, start + TILE) if row in seats]
            common = _common([seats[row].leaf.nodes for row in rows])
            leads.append(rows[0] if rows else 0)
            shared.append(sum(len(node.pages) for node in common))
        self._state.rows.leads.copy_(self._tensor(leads))
        self._state.rows.shared.copy_(self._tensor(shared))

    # Reading and drawing

    @torch.inference_mode()
    def _read(self, segments: Sequence[Segment]) -> list[Tensor]:
        """Read segments in passes; return the hidden states of their last tokens, (segments of a pass, width) each."""
        start, hidden = 0, []
        while start < len(segments):
            sizes = accumulate(len(s.tokens) + (s.start + len(s.tokens)) // 8 for s in segments[start:])
            end = start + max(1, sum(size <= PASS for size in sizes))
            hidden.append(self._pass(segments[start:end]))
            start = end
        return hidden

    def _pass(self, segments: Sequence[Segment]) -> Tensor:
        network = self._network
        lengths = self._tensor(len(s.tokens) for s in segments)
        totals = self._tensor(s.start + len(s.tokens) for s in segments)
        queries, keys = (torch.nn.functional.pad(x.cumsum(0), (1, 0)).int() for x in (lengths, totals))
        reads = torch.cat([self._places(s, 0) for s in segments])
        place = Segments(reads, queries, keys, int(lengths.max()), int(totals.max()))

        def attend(layer: int, query: Tensor) -> Tensor:
            cache = (network.keys[layer].flatten(0, 1), network.values[layer].flatten(0, 1))
            return self._do.attend_segments(query, *cache, place, network.scale)

        hidden = network.hidden(
            self._tensor(token for s in segments for token in s.tokens),
            torch.cat([torch.arange(s.start, s.start + len(s.tokens), device=self._device) for s in segments]),
            torch.cat([self._places(s, s.start) for s in segments]),
            self._tensor(s.row for s in segments).repeat_interleave(lengths),
            attend,
        )
        return hidden[queries[1:].long() - 1]

    @torch.inference_mode()
    def _step(self) -> None:
        """Draw one token a row."""
        network, state = self._network, self._state
        pages = state.rows.table.gather(1, (state.length // self._page)[:, None])[:, 0].long()
        writes = pages * self._page + state.length % self._page
        state.rows.lengths.copy_(state.length + 1)

        def attend(layer: int, query: Tensor) -> Tensor:
            return self._do.attend_rows(query, network.keys[layer], network.values[layer], state.rows, network.scale)

        hidden = network.hidden(state.token, state.length, writes, self._everyone, attend)
        state.length += state.active
        self._record(self._everyone, network.logits(hidden))

    def _record(self, rows: Tensor, logits: Tensor) -> None:
        """Draw a token for rows from their logits, (rows, vocabulary)."""
        state, limit = self._state, self._sampling.max_tokens
        steps, active = state.step[rows], state.active[rows]
        if self._sampling.temperature:
            drawn = self._do.draw(logits, state.seed[rows], steps, self._sampling.temperature)
        else:
            drawn = logits.argmax(-1)
        state.out[rows, steps.where(active, limit)] = drawn
        state.token[rows] = drawn
        state.step[rows] = steps + active
        state.active[rows] = active & ~(drawn[:, None] == self._ends).any(1) & (steps + 1 < limit)

    def _advance(self) -> Callable[[], None]:
        """Return a function that does a step: on a GPU, a graph of it."""
        if self._device.type != "cuda":
            return self._step
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(2):  # compiles kernels and makes workspaces, which a capture must not
                self._step()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step()
        return graph.replay

    def _tensor(self, values: Iterable[int]) -> Tensor:
        return torch.tensor(list(values), device=self._device)

    def _places(self, segment: Segment, start: int) -> Tensor:
        """Return the cache positions of a segment's sequence from ``start`` on."""
        pages = self._tensor(segment.pages)
        at = torch.arange(start, segment.start + len(segment.tokens), device=self._device)
        return pages[at // self._page] * self._page + at % self._page


def _pages(nodes: Iterable[Node]) -> list[int]:
    return [page for node in nodes for page in node.pages]


def _common(paths: Sequence[tuple[Node, ...]]) -> list[Node]:
    """Return the nodes with which all paths begin."""
    return [level[0] for level in zip(*paths, strict=False) if all(node is level[0] for node in level)]
