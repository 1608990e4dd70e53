"""Train transformers' SegFormer on generated scenes, on a CPU in under a minute: python examples/train_transformers.py

The lines that metricseg adds to a usual script are marked.
"""

import tempfile

import torch
from torch.utils.data import Dataset
from transformers import SegformerConfig, SegformerForSemanticSegmentation, Trainer, TrainingArguments

from metricseg.data import Scenes
from metricseg.integrations.transformers import count_valid_pixels, hf_loss  # metricseg
from metricseg.losses import FocalLoss  # metricseg


class Pictures(Dataset):
    """Scenes under the names that the model and Trainer use."""

    def __init__(self, split: str, length: int) -> None:
        self.scenes = Scenes(split, length, size=96)

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        image, labels = self.scenes[index]
        return {"pixel_values": torch.as_tensor(image) / 255, "labels": torch.as_tensor(labels).long()}


def main(steps: int = 40) -> tuple[list[float], float]:
    """(loss of each step, share of correct pixels on new scenes)."""
    torch.manual_seed(0)
    config = SegformerConfig(
        num_labels=len(Scenes.classes),
        depths=[1, 1, 1, 1],
        hidden_sizes=[16, 32, 64, 128],
        num_attention_heads=[1, 2, 4, 8],
        decoder_hidden_size=64,
    )
    model = SegformerForSemanticSegmentation(config)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            learning_rate=2e-3,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=Pictures("train", steps * 8),
            compute_loss_func=hf_loss(FocalLoss(gamma=1.0), model),  # metricseg
        )
        count_valid_pixels(trainer)  # metricseg
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    model.eval()
    batch = torch.utils.data.default_collate(list(Pictures("val", 32)))
    with torch.no_grad():
        logits = model(batch["pixel_values"]).logits  # [B, K, h, w]: the host's are small in eval mode too
    prediction = torch.nn.functional.interpolate(logits, batch["labels"].shape[-2:], mode="bilinear").argmax(1)
    valid = batch["labels"] != 255
    return losses, (prediction == batch["labels"])[valid].float().mean().item()


if __name__ == "__main__":
    losses, accuracy = main()
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}, correct pixels of new scenes {accuracy:.3f}")
