"""Where a model of `transformers` keeps its decoder: each family has other names for the same parts."""

from typing import Any

from torch import nn

from perfmis.stage import UserError


def inner(model: Any) -> Any:
    """Return the `transformers` model inside a `peft` model, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def blocks(model: Any) -> nn.ModuleList:
    """Return the decoder's blocks, in order; those of a vision tower are none of them.

    Args:
        model: A causal language model of `transformers`, or a `peft` model around one.

    Raises:
        UserError: No list of modules is as long as the configuration says.
    """
    base = inner(model)
    number = base.config.get_text_config(decoder=True).num_hidden_layers
    lists = {name: module for name, module in base.get_decoder().named_modules() if isinstance(module, nn.ModuleList)}
    # Experts of a block can be a list too, further down.
    fitting = [name for name, module in lists.items() if len(module) == number]
    if not fitting:
        raise UserError(
            f"{type(base).__name__}: no list of {number} decoder blocks was found in it, so it can be neither steered "
            "nor read out; take another model, or set steering.models: []"
        )
    return lists[min(fitting, key=lambda name: name.count("."))]
