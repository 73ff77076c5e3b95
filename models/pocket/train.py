"""Trains pocket on the CPU: `python train.py --steps 10000 --out pocket.pt`.

Examples are drawn as they are needed, so none is seen twice but by chance. Matrices are trained by Muon, the rest by AdamW;
products are done in bfloat16, which processors with AVX512-BF16 or AMX do twice as fast as float32.
"""

import argparse
import json
import random
import time

import gguf
import torch

import vocabulary as v
from model import Pocket, loss
from problems import Problems

SHARES = {"count": 20, "compare": 14, "add": 12, "sub": 15, "mul": 11, "words": 8, "story": 11, "equation": 9, "sort": 6,
          "other": 6}
CUT = 0.4  # share of thoughts that are cut off
WORK = 40  # tokens of work in an answer to a thought that was cut off, at most
LINE, SO = v.encode("\nSo ")
CLOSING = "\n\nMy time is up; I answer now.\n"
TURNS = 0.1  # share of examples with turns before
BATCH = 6000  # tokens of a step, about
POOL = 3000  # examples that are sorted by length, so that a batch needs little padding
LR_MUON, LR_ADAM = 0.015, 2e-3
WARMUP, COOLDOWN = 0.01, 0.7  # shares of the steps


def cut(thought, rng):
    """A thought that does not come to its end, and the work with which its answer begins. As pensive ends one, after the
    sentence: the line that was cut and what follows it, as much as `WORK` holds. After a marker alone, or no thought at all: no
    work."""
    how = rng.random()
    if how < 0.2:
        return v.encode("\n"), []
    at = rng.randrange(1, len(thought) + 1)
    if how < 0.4:
        return thought[:at], []
    begin = max((i + 1 for i in range(at) if thought[i] == LINE), default=0)
    work = []
    for line in lines(thought[begin:]) if LINE in thought else []:  # a single line is no work
        if len(work) + len(line) > WORK or line[0] == SO:  # what follows "So" is the answer
            break
        work += line
    return thought[:at] + v.encode(CLOSING), work and v.encode(v.WORKING) + work


def lines(ids):
    """Each with its end."""
    line = []
    for i in ids + [LINE]:
        line.append(i)
        if i == LINE:
            yield line
            line = []


def example(problems):
    """Token ids, and how many of the first are not learned."""
    rng = problems.rng
    ids = [v.BOS]
    kinds = list(SHARES)
    while rng.random() < TURNS:
        prompt, _, _, answer = problems.draw(rng.choices(kinds, SHARES.values())[0])
        ids += [v.USER, *v.encode(prompt), v.ASSISTANT, *v.encode(answer), v.EOS]
    prompt, thought, _, answer = problems.draw(rng.choices(kinds, SHARES.values())[0])
    ids += [v.USER, *v.encode(prompt), v.ASSISTANT, *v.encode("<think>\n")]
    learned = len(ids)
    thought = v.encode(thought)
    if rng.random() < CUT:
        # a cut is not learned, only what follows it
        thought, work = cut(thought, rng)
        ids += thought + v.encode("</think>\n\n")
        learned = len(ids)
        ids += work
    else:
        ids += thought + v.encode("\n</think>\n\n")
    return ids + v.encode(answer) + [v.EOS], learned


def batches(problems):
    """Endless (ids, targets) of examples of like length."""
    while True:
        pool = sorted((example(problems) for _ in range(POOL)), key=lambda e: len(e[0]))
        full, rows = [], []
        for e in pool:
            if rows and len(e[0]) * (len(rows) + 1) > BATCH:
                full.append(rows)
                rows = []
            rows.append(e)
        problems.rng.shuffle(full)
        for rows in full:
            length = -(-max(len(ids) for ids, _ in rows) // 8) * 8
            ids = torch.full((len(rows), length), v.EOS)
            targets = torch.full((len(rows), length), -100)
            for i, (row, learned) in enumerate(rows):
                row = torch.tensor(row)
                ids[i, : len(row)] = row
                targets[i, learned - 1 : len(row) - 1] = row[learned:]
            yield ids, targets


class Muon:
    """Momentum whose matrices are made orthogonal by five Newton-Schulz steps (Jordan et al. 2024)."""

    def __init__(self, groups, momentum=0.95, decay=0.01):
        self.groups, self.momentum, self.decay = groups, momentum, decay  # matrices of one shape are done together
        self.moments = [torch.zeros(len(g), *g[0].shape) for g in groups]

    @torch.no_grad()
    def step(self, lr):
        for group, m in zip(self.groups, self.moments):
            g = torch.stack([p.grad for p in group])
            m.lerp_(g, 1 - self.momentum)
            u = orthogonal(g.lerp(m, self.momentum))
            rows, columns = group[0].shape
            scale = lr * max(1, rows / columns) ** 0.5
            for p, update in zip(group, u):
                p.mul_(1 - lr * self.decay).sub_(update, alpha=scale)


def orthogonal(x):
    flip = x.shape[1] > x.shape[2]
    x = x.mT if flip else x
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).bfloat16()
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x.mT if flip else x).float()


def weights(path):
    """Those of a run, or of pocket.gguf."""
    if path.endswith(".gguf"):
        return {t.name: torch.tensor(t.data.astype("float32")) for t in gguf.GGUFReader(path).tensors}
    return torch.load(path, weights_only=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--start", help="weights to go on from")
    parser.add_argument("--at", type=int, default=0, help="the step that they are from")
    parser.add_argument("--out", default="pocket.pt")
    parser.add_argument("--every", type=int, default=500, help="steps between saved weights")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    model = Pocket()
    if args.start:
        model.load_state_dict(weights(args.start))
    print(sum(p.numel() for p in model.parameters()), "parameters", flush=True)
    run = torch.compile(loss, dynamic=True)

    shapes = {}
    others = []
    for name, p in model.named_parameters():
        if p.ndim == 2 and name.startswith("blk"):
            shapes.setdefault(tuple(p.shape), []).append(p)
        else:
            others.append(p)
    muon = Muon(list(shapes.values()))
    adam = torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0, fused=True)

    began, step, mean = time.time(), args.at, 0.0
    for ids, targets in batches(Problems(random.Random(args.seed + args.at), held_out=False)):
        done = step / args.steps
        if done >= 1:
            break
        rate = min(1, (done + 1e-4) / WARMUP, (1 - done) / COOLDOWN)
        for group in adam.param_groups:
            group["lr"] = LR_ADAM * rate
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = run(model, ids, targets)
        value.backward()
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        muon.step(LR_MUON * rate)
        adam.step()
        model.zero_grad(set_to_none=False)
        step += 1
        mean += (value.item() - mean) / min(step - args.at, 100)
        if step % 50 == 0:
            line = {"step": step, "minutes": round((time.time() - began) / 60, 2), "loss": round(mean, 4)}
            print(json.dumps(line), flush=True)
        if step % args.every == 0:
            torch.save(model.state_dict(), args.out)
    torch.save(model.state_dict(), args.out)


if __name__ == "__main__":
    main()
