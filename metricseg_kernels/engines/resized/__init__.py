"""Low-resolution logits interpolated to label pixels inside a kernel, never in memory."""
