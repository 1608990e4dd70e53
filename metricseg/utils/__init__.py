"""What losses, layers and training share: label maps, ranks, memory, names in configurations."""
