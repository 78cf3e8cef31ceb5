"""The model and the heads that only training needs."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from audiovq.model import AudioVQ
from audiovq.quantize import EMACodebook, Quantized, ResidualQuantizer, SplitQuantizer
from audiovq.training.labelled import LabelledCodes
from audiovq.training.recipe import Recipe


class Generator(nn.Module):
    """The model and the heads that only training needs."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.model = AudioVQ(recipe.model, dict(recipe.card))
        dim = recipe.model.codebook_dim
        self.teacher_head = None
        if recipe.data.teacher_folder:
            self.teacher_head = nn.Sequential(
                nn.Linear(dim, 256), nn.GELU(), nn.Linear(256, recipe.data.teacher_dim)
            )
        self.learn = recipe.train.learn
        self.label_head = (
            nn.Linear(dim, recipe.data.n_labels) if recipe.data.labels_folder else None
        )
        self.codes = None
        if recipe.loss.code_labels:
            self.codes = LabelledCodes(recipe.model.codebook_size, dim, recipe.data.n_labels)

    def _units(self) -> tuple[ResidualQuantizer, EMACodebook]:
        """The quantizer and the codebook of units that learn alone."""
        assert isinstance(self.model.quantizer, SplitQuantizer)
        units = self.model.quantizer.units
        assert isinstance(units.codebooks[0], EMACodebook)
        return units, units.codebooks[0]

    def begin_codes(self) -> None:
        """Let the codes that labels move, if there are any, begin where the units' codes are."""
        if self.codes is not None:
            self.codes.begin(self._units()[1])

    @torch.no_grad()
    def place_codes(self, output: dict[str, Any]) -> None:
        """Put the units' codes where labels moved them, if they do, after a step with an output."""
        if self.codes is None or "codes" not in output:
            return
        units, codebook = self._units()
        codebook.place(self.codes.vectors, output["codes"][:, 0].flatten())
        if units.labels is not None:
            units.labels.copy_(self.codes.own_labels)

    def keep_model(self) -> None:
        """Leave out the gradients of all but the heads, for which the codes stay where they are."""
        self.model.zero_grad()
        if self.codes is not None:
            self.codes.moved.grad = None

    def train_mode(self, *, keep_units: bool) -> None:
        """Let all learn but the codebooks that stay as they are, or that labels move.

        keep_units: the units' codebook stays as it is.
        """
        self.train()
        quantizer = self.model.quantizer
        if self.learn == "decoder":
            quantizer.eval()
        elif keep_units or self.learn == "sound" or self.codes is not None:
            assert isinstance(quantizer, SplitQuantizer)
            quantizer.units.eval()  # a unit stays what it is; the encoder follows

    def forward(
        self, wav: Tensor, n_q: Tensor, quantize: bool, codes: Tensor | None = None
    ) -> dict[str, Any]:
        """codes: [B, n_codebooks, T] of wav, when they are known: then only the decoder runs. With
        train.learn = "units" only their own layers run, and there is no sound."""
        if self.learn == "units":
            units, quantized = self.model.hear(wav, quantize=quantize)
            return self._judged({}, quantized, units)
        if codes is not None:
            output = self.model.resynthesize(codes, n_q)
        else:
            output = self.model(wav, n_q, quantize=quantize)
        result: dict[str, Any] = {"wav": output.wav}
        if output.pitch is not None:
            result["pitch"] = output.pitch
        return self._judged(result, output.quantized, output.units)

    def _judged(
        self, result: dict[str, Any], quantized: Quantized | None, units: Tensor | None = None
    ) -> dict[str, Any]:
        """`result` with what the losses on codes and units need; units: where nothing quantized."""
        if quantized is not None:
            units = quantized.units
            result |= {
                "codes": quantized.codes,
                "unit_vectors": quantized.unit_vectors,
                "commitment": quantized.commitment,
                "codebook": quantized.codebook_loss,
                "resets": quantized.resets,
            }
        if units is None:
            return result
        result["units"] = units
        if self.teacher_head is not None:
            result["teacher"] = self.teacher_head(units)
        if self.label_head is not None:
            result["labels"] = self.label_head(units)
        if self.codes is not None and quantized is not None:
            with torch.autocast(units.device.type, enabled=False):
                result["log_codes"] = self.codes(quantized.unit_vectors)
                said = self.codes.labels(result["log_codes"])
            result["code_labels"] = said.repeat_interleave(units.shape[1] // said.shape[2], dim=2)
        return result


def dropout_levels(recipe: Recipe, step: int, rank: int, n_items: int) -> Tensor:
    """Levels that each item of a rank's batch keeps, int64 [n_items]: quantizer dropout."""
    settings, n_codebooks = recipe.train, recipe.model.n_codebooks
    rng = np.random.default_rng([settings.seed, step, rank])
    levels = rng.integers(1, n_codebooks + 1, n_items)
    levels[rng.random(n_items) >= settings.quantizer_dropout] = n_codebooks
    return torch.from_numpy(levels)


def step_seed(recipe: Recipe, step: int) -> int:
    """torch's seed for a step, the same on every rank."""
    return int(np.random.SeedSequence([recipe.train.seed, step]).generate_state(1)[0])
