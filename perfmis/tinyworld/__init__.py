"""The embedded world: a micro-language and tiny models whose gap is driven by a process that is known."""
