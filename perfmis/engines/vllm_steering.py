"""Steering inside vLLM's workers: hooks on the decoder blocks, chosen request by request.

vLLM mixes `Extension` into each worker's class and calls its methods by name, also in other processes. Every
request names its steering in ``SamplingParams.extra_args``, and which prompt it is. The hooks only run in eager mode
and read the batch of the V1 model runner; `perfmis.engines.vllm` asks for both.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from perfmis.engines.displacement import Seen

ARGUMENT, INDEX = "steering", "prompt"
Directions = dict[str, dict[int, bytes]]


class Extension:
    """What a worker can do besides vLLM's own."""

    model_runner: Any

    def steer(self, directions: Directions) -> None:
        """Put hooks on the blocks that are steered, in place of those of the last call.

        Args:
            directions: Name of each steering to block index to vector, as fp32 bytes of shape (hidden,): the
                unit direction times alpha. Empty: the model is left as it is.
        """
        # Not in __init__: vLLM lets an extension add methods only.
        for handle in getattr(self, "_steering_handles", ()):
            handle.remove()
        self._steering_handles: list[Any] = []
        blocks = _blocks(self.model_runner)
        for index in {index for vectors in directions.values() for index in vectors}:
            table = _table(directions, index, self.model_runner.device, self.model_runner.model_config.dtype)
            hook = _Hook(self.model_runner, list(directions), table)
            # Under pipeline parallelism the others' blocks are placeholders, which are never called.
            self._steering_handles.append(blocks[index].register_forward_hook(hook))

    def watch(self, prompts: int) -> None:
        """Note from now on how far the stream of each prompt moves, hooks that are there already included.

        Args:
            prompts: How many they are.
        """
        from perfmis.engines.displacement import Watch

        self._watch = Watch(prompts)
        seen = self._watch.rows(range(prompts), self.model_runner.device)
        self._watching_handles: list[Any] = []
        for index, block in enumerate(_blocks(self.model_runner)):
            first, last = _watching(self.model_runner, index, seen)
            self._watching_handles += [
                block.register_forward_hook(first, prepend=True),
                block.register_forward_hook(last),
            ]

    def displacements(self) -> list[tuple[int, int, bytes, float]]:
        """Return what was noted, as prompt, block, mean (fp32) and largest; and note no more."""
        for handle in self._watching_handles:
            handle.remove()
        found = self._watch.displacements()
        del self._watch
        return [(d.prompt, d.block, d.mean.numpy().tobytes() if d.largest else b"", d.largest) for d in found]


def _blocks(runner: Any) -> "torch.nn.ModuleList":
    """Return the decoder's blocks, wherever a family keeps them.

    Raises:
        RuntimeError: No list of modules is as long as the configuration says.
    """
    from torch import nn

    model = runner.model
    decoder = model.get_language_model() if hasattr(model, "get_language_model") else model
    number = runner.model_config.hf_text_config.num_hidden_layers
    lists = [(name, module) for name, module in decoder.named_modules() if isinstance(module, nn.ModuleList)]
    # Experts of a block can be a list too, further down.
    fitting = sorted(((n.count("."), n, m) for n, m in lists if len(m) == number), key=lambda found: found[:2])
    if not fitting:
        raise RuntimeError(f"{type(model).__name__}: no list of {number} decoder blocks was found in it")
    found: nn.ModuleList = fitting[0][2]
    return found


class _Hook:
    """Adds each token's vector to the residual stream after one block."""

    def __init__(self, runner: Any, names: list[str], table: "torch.Tensor") -> None:
        self._runner, self._table = runner, table
        self._rows = {name: row for row, name in enumerate(names, 1)}

    def __call__(self, _module: Any, _inputs: Any, output: Any) -> Any:
        rows = self._token_rows()
        if rows is None:
            return output
        hidden, stream = output[0] if isinstance(output, tuple) else output, _stream(output)
        # Parallel engines pad the batch; the rows that follow the last token stay as they are.
        tokens = rows.shape[0]
        hidden[:tokens] += self._table[rows] * stream[:tokens].norm(dim=-1, keepdim=True)
        return output

    def _token_rows(self) -> "torch.Tensor | None":
        """Return each token's row of the table, shape (tokens,); None when nothing in the batch is steered."""
        import torch

        of_request = [self._rows.get(arguments.get(ARGUMENT, ""), 0) for arguments in _arguments(self._runner)]
        if not any(of_request):
            return None
        rows = torch.repeat_interleave(torch.tensor(of_request), _lengths(self._runner))
        return rows.to(self._table.device, non_blocking=True)


def _arguments(runner: Any) -> list[dict[str, Any]]:
    """Return what each request of the batch was sent along with."""
    return [runner.requests[name].sampling_params.extra_args or {} for name in runner.input_batch.req_ids]


def _lengths(runner: Any) -> "torch.Tensor":
    """Return how many tokens of each request are in the batch, (requests,)."""
    import torch

    starts = torch.from_numpy(runner.query_start_loc.np[: runner.input_batch.num_reqs + 1])
    return starts.diff().long()


def _watching(runner: Any, block: int, seen: "Seen") -> tuple[Any, Any]:
    """Return the hook that runs before, and the one that runs after those that steer a block."""
    import torch

    outputs: list[torch.Tensor] = []

    def first(_module: Any, _inputs: Any, output: Any) -> None:
        outputs.append(_stream(output).clone())

    def last(_module: Any, _inputs: Any, output: Any) -> None:
        prompts = torch.tensor([arguments[INDEX] for arguments in _arguments(runner)])
        rows = torch.repeat_interleave(prompts, _lengths(runner))
        before, after = outputs.pop()[: len(rows)], _stream(output)[: len(rows)]
        seen(block, before, after, rows.to(after.device))

    return first, last


def _stream(output: Any) -> "torch.Tensor":
    """Return the residual stream: a block leaves the sum of its last part and the residual to the next one's norm."""
    hidden, residual = output if isinstance(output, tuple) else (output, None)
    stream: torch.Tensor = hidden if residual is None else hidden + residual
    return stream


def _table(directions: Directions, block: int, device: Any, dtype: Any) -> "torch.Tensor":
    """Return the vectors of one block, shape (steerings + 1, hidden); the first row is for unsteered requests."""
    import torch

    found = [vectors.get(block) for vectors in directions.values()]
    width = len(next(data for data in found if data)) // 4
    rows = [torch.frombuffer(bytearray(data), dtype=torch.float32) if data else torch.zeros(width) for data in found]
    return torch.stack([torch.zeros(width), *rows]).to(device, dtype)
