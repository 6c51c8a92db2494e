"""One module per figure, each drawn from tables; ``style`` holds what they share."""
