"""Helpers of losses, layers and training: label maps, ranks, memory, names in configurations."""
