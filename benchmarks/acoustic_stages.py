"""An acoustic stage that fills level by level, to set beside the one that goes frame by frame.

    python benchmarks/acoustic_stages.py learn data/lm runs/levels --minutes 20
    python benchmarks/acoustic_stages.py sound runs/levels heldout/ --limit 15 --rounds 8 1

VALL-E's second stage (Wang et al. 2023) and SoundStorm (Borsos et al. 2023): a transformer that
looks both ways sees the units of all frames, all codes of the prompt, and of the rest the levels
before; it learns one level at a time, of which some codes are shown and the others are to be found.
`sound` draws a level in so many rounds, each keeping the surest, and prints what
`benchmarks/language_model.py acoustic` prints of the stage in the package.

The weights are as many as there, from the same parts.
"""

import argparse
import json
import math
import time
from dataclasses import asdict, replace
from pathlib import Path

import machine
import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from language_model import print_sound
from torch import Tensor, nn
from transformers import GPTNeoXModel

from audiovq import AudioVQ
from audiovq.lm import LanguageModel, Sampling, TokenDataset, Vocabulary
from audiovq.lm.acoustic import Level, of_variance_1
from audiovq.lm.data import CodeBatches
from audiovq.lm.sizes import Sizes

SIZES = Sizes(width=256, layers=4, heads=4, context=384, dropout=0.05)
MOST_OF_PROMPT = 0.5
"""Of a crop, what training shows as a prompt at most."""


class LevelModel(nn.Module):
    """Codes of the levels above the units, level by level."""

    def __init__(self, vocabulary: Vocabulary, codebooks: Tensor) -> None:
        super().__init__()
        n_q, size, code_dim = codebooks.shape
        self.vocabulary = vocabulary
        self.tables = nn.Parameter(of_variance_1(codebooks))
        self.reads = nn.ModuleList(nn.Linear(code_dim, SIZES.width) for _ in range(n_q))
        self.wanted = nn.Embedding(n_q, SIZES.width)
        self.hidden = nn.Embedding(1, SIZES.width)
        self.prompt = nn.Embedding(2, SIZES.width)
        self.transformer = GPTNeoXModel(SIZES.transformer(vocab_size=1))
        self.levels = nn.ModuleList(Level(SIZES.width, code_dim, size) for _ in range(1, n_q))

    def forward(self, codes: Tensor, level: int, shown: Tensor, n_prompt: Tensor) -> Tensor:
        """Logits [B, T, K] of a level of codes [B, n_q, T].

        shown: bool [B, T], where its codes are known. n_prompt: [B], frames of which all are.
        """
        frames = torch.arange(codes.shape[2], device=codes.device)
        in_prompt = frames < n_prompt[:, None]
        seen = self.wanted.weight[level] + self.prompt(in_prompt.long())
        for i, read in enumerate(self.reads):
            known = read(F.embedding(codes[:, i], self.tables[i]))
            if i < level:
                seen = seen + known
            elif i == level:
                seen = seen + torch.where(shown[..., None], known, self.hidden.weight[0])
            else:
                seen = seen + in_prompt[..., None] * known
        both_ways = torch.zeros(len(codes), 1, len(frames), len(frames), device=codes.device)
        out = self.transformer(inputs_embeds=seen, attention_mask=both_ways, use_cache=False)
        return self.levels[level - 1](out.last_hidden_state, self.tables[level])

    def loss(self, codes: Tensor, there: Tensor, rng: np.random.Generator) -> Tensor:
        """Of one level, drawn at random, in nats; codes [B, n_q, T], there [B, T]."""
        batch, n_q, n_frames = codes.shape
        level = int(rng.integers(1, n_q))
        stride = self.vocabulary.frames_per_code[level]
        n_prompt = rng.integers(0, int(MOST_OF_PROMPT * n_frames) + 1, batch)
        n_prompt = torch.from_numpy(n_prompt - n_prompt % self.vocabulary.group_frames)
        n_codes = -(-n_frames // stride)
        share = torch.from_numpy(np.cos(rng.random(batch) * math.pi / 2))
        hidden = torch.from_numpy(rng.random((batch, n_codes))) < share[:, None]
        hidden = hidden.repeat_interleave(stride, 1)[:, :n_frames]
        frames = torch.arange(n_frames)
        hidden &= frames >= n_prompt[:, None]
        logits = self(codes, level, ~hidden, n_prompt)
        learnt = hidden & there & (frames % stride == 0)
        if not learnt.any():
            learnt = there & (frames % stride == 0)
        return F.cross_entropy(logits[learnt].float(), codes[:, level][learnt])

    @torch.no_grad()
    def write(
        self, codes: Tensor, units: Tensor, rounds: list[int], temperature: float, seed: int
    ) -> Tensor:
        """The codes [n_q, T] of units [t] after a prompt's codes [n_q, T - t].

        rounds: of each level above the units, the last one for those that follow too. What is
        longer than the crops of training is written in parts, each after the prompt.
        """
        generator = torch.Generator().manual_seed(seed)
        parts = units.split(SIZES.context - codes.shape[1])
        written = [self._fill(codes, part, rounds, temperature, generator) for part in parts]
        return torch.cat([codes, *written], dim=1)

    def _fill(
        self,
        codes: Tensor,
        units: Tensor,
        rounds: list[int],
        temperature: float,
        generator: torch.Generator,
    ) -> Tensor:
        """The codes [n_q, t] of units [t]."""
        n_q, n_prompt = codes.shape
        rest = torch.zeros(n_q, len(units), dtype=torch.int64)
        rest[0] = units
        found = torch.cat([codes, rest], 1)[None]
        for level in range(1, n_q):
            stride = self.vocabulary.frames_per_code[level]
            shown = torch.arange(found.shape[2]) < n_prompt
            due = torch.arange(found.shape[2]) % stride == 0
            n_rounds = rounds[min(level, len(rounds)) - 1]
            n_due = int((due & ~shown).sum())
            for turn in range(1, n_rounds + 1):
                logits = self(found, level, shown[None], torch.tensor([n_prompt]))[0].float()
                drawn, sure = _draw(logits, temperature, generator)
                sure = sure.masked_fill(shown | ~due, -math.inf)
                hide = int(n_due * math.cos(math.pi / 2 * turn / n_rounds))  # 0 in the last
                left = int((due & ~shown).sum())
                chosen = torch.zeros_like(shown)
                chosen[sure.topk(left - min(hide, left)).indices] = True
                chosen = chosen[::stride].repeat_interleave(stride)[: len(shown)]
                drawn = drawn[::stride].repeat_interleave(stride)[: len(shown)]
                found[0, level] = torch.where(chosen, drawn, found[0, level])
                shown = shown | chosen
        return found[0, :, n_prompt:]


def _draw(logits: Tensor, temperature: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Codes [T] of logits [T, K], and how sure they are."""
    if temperature == 0:
        best = logits.log_softmax(-1).max(-1)
        return best.indices, best.values
    logs = (logits / temperature).log_softmax(-1)
    drawn = torch.multinomial(logs.exp(), 1, generator=generator)
    # Sampled too (MaskGIT): the surest alone are those of silence.
    noise = torch.rand(len(logs), generator=generator).clamp(1e-9, 1 - 1e-9)
    return drawn[:, 0], logs.gather(1, drawn)[:, 0] - temperature * (-noise.log()).log()


def learn(arguments: argparse.Namespace) -> None:
    """Train for so many minutes of processor time, as `audiovq lm train` does."""
    data = TokenDataset(arguments.data)
    codec = AudioVQ.from_pretrained(arguments.model)
    torch.manual_seed(0)
    codebooks = torch.stack(codec.quantizer.tables()[: data.vocabulary.n_q]).detach()
    model = LevelModel(data.vocabulary, codebooks).train()
    n_parameters = sum(p.numel() for p in model.parameters())
    print(f"{n_parameters / 1e6:.1f} M parameters, {data.seconds / 3600:.2f} h", flush=True)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, (0.9, 0.98), weight_decay=0.1)
    batches = CodeBatches(data, SIZES.context, arguments.batch_size, 0)
    start, step, losses = time.process_time(), 0, []
    while (done := (time.process_time() - start) / (60 * arguments.minutes)) < 1:
        rate = 1e-3 * min(1.0, (step + 1) / 200) * (0.5 + 0.5 * math.cos(math.pi * done))
        optimizer.param_groups[0]["lr"] = rate
        loss = model.loss(*batches.batch(step), np.random.default_rng([1, step]))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        losses.append(float(loss.detach()))
        if step % 100 == 0:
            print(f"step {step} loss {np.mean(losses[-100:]):.3f} {done:.1%}", flush=True)
    arguments.out.mkdir(parents=True)
    safetensors.torch.save_file(model.state_dict(), arguments.out / "model.safetensors")
    card = {"steps": step, "minutes": arguments.minutes, "sizes": asdict(SIZES)}
    (arguments.out / "card.json").write_text(json.dumps(card), encoding="utf-8")
    print(f"{step} steps, wrote {arguments.out}")


def sound(arguments: argparse.Namespace) -> None:
    """The sound of true units after a true prompt, beside that of the true codes."""
    lm = LanguageModel.from_pretrained("default", arguments.model)
    weights = safetensors.torch.load_file(arguments.run / "model.safetensors")
    lm.n_q = len(weights["tables"])
    codebooks = torch.stack(lm.codec.quantizer.tables()[: lm.n_q]).detach()
    header = lm.codec.header(lm.n_q, 0)
    vocabulary = replace(lm.vocabulary, n_q=lm.n_q, level_strides=header.level_strides)
    model = LevelModel(vocabulary, codebooks).eval()
    model.load_state_dict(weights)
    temperature = Sampling().acoustic_temperature
    if arguments.temperature is not None:
        temperature = arguments.temperature

    def write(codes: Tensor, units: Tensor) -> Tensor:
        return model.write(codes, units, arguments.rounds, temperature, 0)

    print_sound(lm, arguments, "level by level", write)


def main() -> None:
    """See the head of this file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    verbs = parser.add_subparsers(required=True)
    verb = verbs.add_parser("learn", help=learn.__doc__)
    verb.set_defaults(function=learn)
    verb.add_argument("data", type=Path)
    verb.add_argument("out", type=Path)
    verb.add_argument("--minutes", type=float, default=20.0)
    verb.add_argument("--batch-size", type=int, default=2)
    verb = verbs.add_parser("sound", help=sound.__doc__)
    verb.set_defaults(function=sound)
    verb.add_argument("run", type=Path)
    verb.add_argument("recordings", type=Path)
    verb.add_argument("--limit", type=int)
    verb.add_argument("--rounds", type=int, nargs="+", default=[8, 1])
    verb.add_argument("--temperature", type=float)
    verb.add_argument("--asr", help="moonshine, pocketsphinx or a command")
    verb.add_argument("--n-q", type=int, help="levels to hear of what is written; all if not said")
    for verb in verbs.choices.values():
        verb.add_argument("--model", default="default", help="the tokenizer")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(machine.describe())
    arguments.function(arguments)


if __name__ == "__main__":
    machine.run_benchmark(main)
