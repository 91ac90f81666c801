"""Start from a `datasets.Dataset`: train an ensemble on it, evaluate it, and look at the answers as a table.

    pip install 'lorchestra[hub,pandas]'
    python examples/from_datasets.py --out runs/from-datasets

With a network, replace `toy()` by `datasets.load_dataset("fancyzhx/ag_news", split="train")`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import datasets

from lorchestra import AdaptConfig, BaseConfig, DataConfig, Ensemble, RunConfig, TrainConfig


def toy() -> datasets.Dataset:
    """A small data set like those on the hub: labels are integers, their names are in the features."""
    things, words = ("film", "play", "song", "book", "meal"), (("fine", 1), ("dull", 0), ("good", 1), ("bad", 0))
    rows = [(f"the {thing} {n} was {word}", label) for n in range(4) for thing in things for word, label in words]
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["negative", "positive"])}
    )
    columns = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
    return datasets.Dataset.from_dict(columns, features=features)


def with_label_names(dataset: datasets.Dataset) -> datasets.Dataset:
    """Labels as words: the model reads and scores them, so they should be meaningful."""
    names = dataset.features["label"].int2str(dataset["label"][:])
    return datasets.Dataset.from_dict({"text": dataset["text"][:], "label": names})


def main() -> None:
    """Train, evaluate, predict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path, help="directory to make")
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    arguments = parser.parse_args()

    parts = with_label_names(toy()).train_test_split(test_size=0.2, seed=0)
    arguments.out.mkdir(parents=True)
    files = {split: str(arguments.out / f"{split}.parquet") for split in ("train", "test")}
    for split, file in files.items():
        parts[split].to_parquet(file)

    config = RunConfig(
        base=BaseConfig(name=arguments.base),
        adapt=AdaptConfig(members=arguments.members, layers="last:2"),
        data=DataConfig(train=files["train"], test=files["test"]),
        train=TrainConfig(epochs=arguments.epochs),
    )
    ensemble = Ensemble.train(config, out=arguments.out / "run")
    scores = ensemble.evaluate().to_dict()["ensemble"]
    print(f"test accuracy {scores['accuracy']:.3f}, NLL {scores['nll']:.3f}")

    answers = ensemble.predict(parts["test"]).to_pandas()
    print(answers.sort_values("mutual_information", ascending=False)[["id", "prediction", "confidence"]].head())


if __name__ == "__main__":
    main()
