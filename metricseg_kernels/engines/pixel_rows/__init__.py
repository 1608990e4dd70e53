"""All pixels of a feature map against a few rows, such as class centers. No permuted copy of the map is made."""
