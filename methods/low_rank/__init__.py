"""Low rank: factors of a layer's weights instead of the weights."""
