"""Train an ensemble with your own training loop, in plain PyTorch; then make a run of it and evaluate the run.

    python examples/own_loop.py --data reviews.csv --out runs/own-loop

`EnsembleModule` is a `torch.nn.Module` whose parameters are the members' adapters. All members' rows go through the
frozen base in one packed pass, each member sees the data in a different order, and losses are *summed* over members:
a member's gradient then does not depend on the number of members.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch

from lorchestra import AdaptConfig, BaseConfig, DataConfig, Ensemble, RunConfig, build_module, read_task


def main() -> None:
    """Train, save, import, evaluate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="labelled rows, as for lorchestra train")
    parser.add_argument("--out", required=True, type=Path, help="directory to make")
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--lr", type=float, default=3e-4)
    arguments = parser.parse_args()

    config = RunConfig(
        base=BaseConfig(name=arguments.base),
        adapt=AdaptConfig(members=arguments.members, layers="last:2"),
        data=DataConfig(train=arguments.data),
    )
    task = read_task(config)
    module = build_module(config, task)
    train, val = (module.encode(task.splits[split]) for split in ("train", "val"))
    answers = torch.tensor([row.answer for row in val])

    optimizer = torch.optim.AdamW(module.parameters(), lr=arguments.lr, weight_decay=0.0)
    batch_size = 8
    for epoch in range(arguments.epochs):
        orders = []
        for member in range(module.num_members):
            order = list(train)
            random.Random(f"{epoch}/{member}").shuffle(order)
            orders.append(order)
        for start in range(0, len(train), batch_size):
            pairs = [(m, row) for m, order in enumerate(orders) for row in order[start : start + batch_size]]
            log_probs = module.log_probs(pairs)
            right = torch.tensor([row.answer for _, row in pairs])
            losses = -log_probs[torch.arange(len(pairs)), right]
            rows_per_member = len(pairs) // module.num_members
            optimizer.zero_grad()
            (losses.sum() / rows_per_member).backward()  # the sum over members of their mean losses
            optimizer.step()
        with torch.no_grad():
            mixture = module.mixture(val)
        nll = -mixture[torch.arange(len(answers)), answers].mean()
        print(f"epoch {epoch + 1}: validation NLL of the ensemble {nll:.3f}")

    module.save_pretrained(arguments.out / "adapters")
    folders = sorted((arguments.out / "adapters").iterdir())
    out = arguments.out / "run"
    ensemble = Ensemble.from_peft(folders, out, data=module.pipeline.data, base=config.base)
    scores = ensemble.evaluate().to_dict()["ensemble"]
    print(f"{out}: test accuracy {scores['accuracy']:.3f}, NLL {scores['nll']:.3f}")


if __name__ == "__main__":
    main()
