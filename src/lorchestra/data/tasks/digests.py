"""Number and `rows_digest` of the rows of each named task, for published parts and splits.

The parts detect a source with other rows, the splits a change of how they are made. A missing digest means that the
rows were not available. tests/data/tasks/test_real_data.py recomputes all digests from the data.
"""

from __future__ import annotations

from collections.abc import Mapping

from lorchestra.data.tasks.spec import ExpectedRows

PARTS: Mapping[str, Mapping[str, ExpectedRows]] = {
    "commonsense_qa": {
        "train": ExpectedRows(9741, "8a976323ce12cbad5108363ffe190008d25710e7ef0f95438d6ecdd2d90bb587"),
        "dev": ExpectedRows(1221, "dafee079c7a9f0fc6449a556450f876ede1e7c9b582cf2f01c2f08df4c4a3e8d"),
    },
    "openbookqa": {
        "train": ExpectedRows(4957, "d0c9aab3af8bc4035c3a9f3f7b081a6960ff9153d4a0fa8426edea9b854a1cef"),
        "dev": ExpectedRows(500, "738ea74d167ee3754e407786039980464275162e3e2ec7fdc8f3496f444000df"),
        "test": ExpectedRows(500, "604d788a3025b6e50b249982b4838992dc18576ec068632ac1205e37270f2fc3"),
    },
    "arc_easy": {
        "train": ExpectedRows(2251, "773f053868e89763213faaf282bd2d79aea912c235511b16e307476cfd41aaf6"),
        "dev": ExpectedRows(570, "effb6f1e456c2d177676fe4c2d3049e031a9f9e1e09072417a0f5091d8c73fc1"),
        "test": ExpectedRows(2376, "c1e237c4f1ccf83909980400e07713f6b45bf1189090a449ad2afc639a88e4fd"),
    },
    "arc_challenge": {
        "train": ExpectedRows(1119, "dde2eded0bd3b35413c4fdf8fdb172271e25d0c78a7a296bd736f11ecedc039e"),
        "dev": ExpectedRows(299, "1c35c8754d39e6d752740a10eb839f1a89c72d71e8210b330ff0b7efeaca83f7"),
        "test": ExpectedRows(1172, "42521acef9a2ab4b6cd29309e2fe4b582691d7aa53c87f82a51abaedbd4b2fc0"),
    },
    "mmlu_social_sciences": {
        "dev": ExpectedRows(60, "f42fa83c2221376c580a4dea87d2e87556383eb237cc6d0ca997da6aac7dfe88"),
        "val": ExpectedRows(337, "5d6979d35b973ae0918bd9cab71d2165f1ce9ca07db08cbe51d0e15c601780a9"),
        "test": ExpectedRows(3077, "25e922a56de6861fe67ebe5cdbf6f9c788d1fb49aa603d499133d9d7a970c931"),
    },
    "mmlu_stem": {
        "dev": ExpectedRows(90, "166cc4e0dfd4766016d0624ab658d872a1846afded03b1bd11f624e40b5d6b25"),
        "val": ExpectedRows(321, "60e4ed7f20f9f68e7c4fc808534fa61fe2de27439e4fe2bfaeb30387d64c7b3a"),
        "test": ExpectedRows(3018, "46f97cb7ef1953db3fe9d05f0af825e6e54cc1952e5a4164414d7d9673430e4d"),
    },
    "boolq": {
        "train": ExpectedRows(9427),
        "dev": ExpectedRows(3270, "bdef13ffaf95fc028f63b99bd58cefd0d85aca736f95f1e88a3c9215b8209cca"),
    },
    "boolq_closed": {
        "train": ExpectedRows(9427, "f95c0d1922acc2a15bd5cc9372a924dcaa51640c88f8aafcb7cfe1ae2a2961c2"),
        "dev": ExpectedRows(3270, "cfadf50b9dc6720cd22a5f37042281292f5a2455581d1cd699828a0afeb6a7e1"),
    },
    "winogrande_s": {
        "train": ExpectedRows(640, "d2a37cc1a576610fa022d2efc5c4e688a749524d8894a02e9e7128b8f392eb8c"),
        "dev": ExpectedRows(1267, "e26190802713362734de298bbd56e3cea545eff8f5b7ed68d8561d38af925fd3"),
    },
    "winogrande_m": {
        "train": ExpectedRows(2558, "d1d11427690dbe2e533b2a69653491c8ee0f56d363f3ffc9bed2a3c9891b6683"),
        "dev": ExpectedRows(1267, "e26190802713362734de298bbd56e3cea545eff8f5b7ed68d8561d38af925fd3"),
    },
    "sciq": {
        "train": ExpectedRows(11_679),
        "dev": ExpectedRows(1000, "262d1109205e6fd65b8a322660cac6cf0d714a9487de39810015b6eb065f3173"),
        "test": ExpectedRows(1000),
    },
    "sciq_dev": {
        "dev": ExpectedRows(1000, "262d1109205e6fd65b8a322660cac6cf0d714a9487de39810015b6eb065f3173"),
    },
    "sst2": {
        "train": ExpectedRows(6920, "9cbdcd1da55df0a927ffcbc296208966f39038e435aaf0e3016dfe2c794a50f2"),
        "dev": ExpectedRows(872, "61436f1d38428f19a676f43e368f10270bdb2e62fc635f824650087aa54eac28"),
        "test": ExpectedRows(1821, "3b3b78ce6a055060ad6a7888a33f31e615c2729c539b8ba965a1dbc4033e7efa"),
    },
    "ag_news": {
        "train": ExpectedRows(120_000),
        "test": ExpectedRows(7600),
    },
    "ag_news_10k": {
        "train_10k": ExpectedRows(10_000, "9f819907b81a78e53e9f0554c6afc92472f6d932fee2632c7c0215ec21c8e768"),
        "test": ExpectedRows(7600, "fc8dbefec220292abc01496505c66a7fe1358a892e983a13d1004c05c19632a3"),
    },
}
"""Published parts by task."""

SPLIT_ROWS: Mapping[str, Mapping[str, ExpectedRows]] = {
    "commonsense_qa": {
        "train": ExpectedRows(8767, "b13ebb274a815081409c9c047dbd38c4938f3bc1a8b411391904b960ac2bf512"),
        "val": ExpectedRows(974, "fa829ff7e06b6cdccb2165db7888a8fd3c4b3be6271a23dddf8f8df709ea12ec"),
        "test": ExpectedRows(1221, "dafee079c7a9f0fc6449a556450f876ede1e7c9b582cf2f01c2f08df4c4a3e8d"),
    },
    "openbookqa": {
        "train": ExpectedRows(4936, "ad710392f30c2f5f2aabc7f8714be583f8fc9cf879270c8597cba37307a76e14"),
        "val": ExpectedRows(500, "738ea74d167ee3754e407786039980464275162e3e2ec7fdc8f3496f444000df"),
        "test": ExpectedRows(500, "604d788a3025b6e50b249982b4838992dc18576ec068632ac1205e37270f2fc3"),
    },
    "arc_easy": {
        "train": ExpectedRows(2248, "c2e4a1527c9fec78d82e911000ef8d773415778019bea49e1e5b2434cef19d67"),
        "val": ExpectedRows(570, "effb6f1e456c2d177676fe4c2d3049e031a9f9e1e09072417a0f5091d8c73fc1"),
        "test": ExpectedRows(2376, "c1e237c4f1ccf83909980400e07713f6b45bf1189090a449ad2afc639a88e4fd"),
    },
    "arc_challenge": {
        "train": ExpectedRows(1119, "dde2eded0bd3b35413c4fdf8fdb172271e25d0c78a7a296bd736f11ecedc039e"),
        "val": ExpectedRows(299, "1c35c8754d39e6d752740a10eb839f1a89c72d71e8210b330ff0b7efeaca83f7"),
        "test": ExpectedRows(1172, "42521acef9a2ab4b6cd29309e2fe4b582691d7aa53c87f82a51abaedbd4b2fc0"),
    },
    "mmlu_social_sciences": {
        "train": ExpectedRows(312, "32336b5384116048eb2a9592d352d2b854534eb5719c5271abaf282819c50b74"),
        "val": ExpectedRows(78, "bb6170ac19b490b0ad964d336402cb190685a07cc23904cbe8e4f14b6efd4baf"),
        "test": ExpectedRows(3077, "25e922a56de6861fe67ebe5cdbf6f9c788d1fb49aa603d499133d9d7a970c931"),
    },
    "mmlu_stem": {
        "train": ExpectedRows(323, "74b9b77b44ed5d0d93212bbc4f1072b66b21488523dbb671bec1825d7958f4ae"),
        "val": ExpectedRows(82, "958c6900c4c71b30b385f06506a4c0afcfdd79ad96b9d24b3741d200f4297401"),
        "test": ExpectedRows(3018, "46f97cb7ef1953db3fe9d05f0af825e6e54cc1952e5a4164414d7d9673430e4d"),
    },
    "boolq": {
        "train": ExpectedRows(8484),
        "val": ExpectedRows(943),
        "test": ExpectedRows(3270, "bdef13ffaf95fc028f63b99bd58cefd0d85aca736f95f1e88a3c9215b8209cca"),
    },
    "boolq_closed": {
        "train": ExpectedRows(8484, "58013c8be322ce31c9f0648d01d51447a64708a8cea2b8e0526f48ba9784e259"),
        "val": ExpectedRows(943, "5160fe570143b7099a22d1050ebbc747043af42b1451fc258c70944710bf914f"),
        "test": ExpectedRows(3270, "cfadf50b9dc6720cd22a5f37042281292f5a2455581d1cd699828a0afeb6a7e1"),
    },
    "winogrande_s": {
        "train": ExpectedRows(576, "877b2c9ce5ad43cfc58e0efd505105665b6681394d1ce6c058c943189b1c7732"),
        "val": ExpectedRows(64, "194ec76d04c907b65014aed845a44d9ada3e189fd28a633a4aa5ce04b449a826"),
        "test": ExpectedRows(1267, "e26190802713362734de298bbd56e3cea545eff8f5b7ed68d8561d38af925fd3"),
    },
    "winogrande_m": {
        "train": ExpectedRows(2302, "c3ef2e27268cb24b4f499b8ef1aea3e7e2c0dff0ac52a4657b3b27808a31c7a1"),
        "val": ExpectedRows(256, "e9441bd02986b535c8954ec22db7922c86a62ff7b09d82d3225cfd96f92c73b7"),
        "test": ExpectedRows(1267, "e26190802713362734de298bbd56e3cea545eff8f5b7ed68d8561d38af925fd3"),
    },
    "sciq": {
        "train": ExpectedRows(11_679),
        "val": ExpectedRows(1000),
        "test": ExpectedRows(1000),
    },
    "sciq_dev": {
        "test": ExpectedRows(1000, "262d1109205e6fd65b8a322660cac6cf0d714a9487de39810015b6eb065f3173"),
    },
    "sst2": {
        "train": ExpectedRows(6917, "87eebe4024bb5495070e20bd6030bb4c6b58b854768cdb55a56319ea206bb048"),
        "val": ExpectedRows(872, "61436f1d38428f19a676f43e368f10270bdb2e62fc635f824650087aa54eac28"),
        "test": ExpectedRows(1821, "3b3b78ce6a055060ad6a7888a33f31e615c2729c539b8ba965a1dbc4033e7efa"),
    },
    "ag_news": {
        "train": ExpectedRows(108_000),
        "val": ExpectedRows(12_000),
        "test": ExpectedRows(7600),
    },
    "ag_news_10k": {
        "train": ExpectedRows(8999, "233b0326f1fed0f89562bb2289f62f16378f40ed2958c4d8ea0d404e1254094f"),
        "val": ExpectedRows(1000, "985b58ae5790f4144d9982cba49646f7c55d138f6586f0231b556b3cec0d1f48"),
        "test": ExpectedRows(7600, "fc8dbefec220292abc01496505c66a7fe1358a892e983a13d1004c05c19632a3"),
    },
}
"""Splits by task."""
