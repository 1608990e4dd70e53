"""Pictures of predictions, embeddings, class centers and offsets, drawn during training or written by `metricseg
predict`; and explanations, written by `metricseg explain`."""
