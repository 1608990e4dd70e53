"""Pictures of predictions, embeddings and class centers, drawn during training or written by `metricseg predict`; and
explanations, written by `metricseg explain`."""
