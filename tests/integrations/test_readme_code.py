"""The Python of the README files runs as it is printed: every block of code, and what the tables of tasks and programs name."""

import re
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from geomprobe import Probe, Reading
from geomprobe.files import StepFile
from geomprobe.models.toy import byte_tokenizer
from tests.capture.test_own_decoder import GPT
from tests.readme_block import ROOT
from tests.tiny_models import tiny, token_batch

pytestmark = pytest.mark.slow  # it trains

PAGES = [
    page for page in sorted(ROOT.rglob("README.md")) if not any(part.startswith(".") for part in page.relative_to(ROOT).parts)
]
BLOCKS = [(page, code) for page in PAGES for code in re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)]
TABLES = ("| I want to … | how | example |", "| program | use | tracker |")
SHOWN = {"class TopShare(Metric)", "geomprobe[lightning]"}
COMMANDS = ("geomprobe ", "python examples/")
"""What is no Python: a class without its body, which is examples/04, and commands, which have tests of their own."""


def cells() -> list[str]:
    """The code in the second column of the tables."""
    found = []
    for page in PAGES:
        for table in re.findall(r"(?:^\|.*\n)+", page.read_text("utf-8"), re.MULTILINE):
            head, _, *rows = table.splitlines()
            if head in TABLES:
                found += [code for row in rows for code in re.findall(r"`([^`]+)`", row.split(" | ")[1])]
    return found


class Names(dict[str, Any]):
    """The names that the README takes for granted. Lightning and TensorBoard are started when they are named."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.logged: list[tuple[int, dict[str, float]]] = []
        for package in map(import_module, ("geomprobe", "geomprobe.integrations")):
            self.update({name: getattr(package, name) for name in package.__all__})
        ids = token_batch(100)
        model, gpt = tiny(vocabulary=256).train(), GPT()
        options: Any = {"max_steps": 50, "per_device_train_batch_size": 2, "report_to": "none", "save_strategy": "no"}
        self.update(
            model=model,
            batch={"input_ids": ids[:2], "labels": ids[:2]},
            ids=ids[:2],
            targets=ids[:2],
            gpt=gpt,
            ds=[{"input_ids": row, "labels": row} for row in ids],
            loader=[{"input_ids": row[None], "labels": row[None]} for row in ids],
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            args=TrainingArguments(str(folder), use_cpu=True, disable_tqdm=True, **options),
            Trainer=Trainer,
            writer=lambda numbers, step: self.logged.append((step, numbers)),
            callback=lambda gain: None,
            texts={"input_ids": ids[2:4]},
            step=7,
        )

    def __missing__(self, name: str) -> Any:
        made = {"reading": self.reading, "probe": self.probe, "accelerator": self.accelerator, "fabric": self.fabric}
        made |= {"tokenizer": self.tokenizer, "before": self.reading, "after": self.reading, "text": self.text}
        made |= {"lightning": self.lightning, "logger": self.logger, "module": self.module}
        if name not in made:
            raise KeyError(name)
        return self.setdefault(name, made[name]())

    def probe(self) -> Probe:
        with Probe(self["model"]) as probe:
            self["model"](self["ids"])
        return probe

    def reading(self) -> Reading:
        return self.probe().read("train")

    def text(self) -> str:
        return self.reading().to_json()

    def tokenizer(self) -> Any:
        made = byte_tokenizer()
        made.pad_token = made.convert_ids_to_tokens(0)
        return made

    def accelerator(self) -> Accelerator:
        accelerator = Accelerator(cpu=True, log_with="wandb")
        accelerator.init_trackers("readme")
        return accelerator

    def lightning(self) -> Any:
        trainer = pytest.importorskip("lightning").Trainer
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
        return SimpleNamespace(Trainer=partial(trainer, accelerator="cpu", max_steps=50, **quiet))

    def logger(self) -> Any:
        from lightning.pytorch.loggers.csv_logs import CSVLogger

        return CSVLogger(str(self.folder))

    def fabric(self) -> Any:
        from lightning.fabric import Fabric

        return Fabric(accelerator="cpu", loggers=self["logger"])

    def module(self) -> Any:
        from tests.integrations.test_lightning import Module

        self["loader"] = DataLoader(list(token_batch(100)), batch_size=2)  # type: ignore[arg-type]  # of what it takes
        return Module()


def name(block: tuple[Path, str]) -> str:
    return f"{block[0].relative_to(ROOT)}: {block[1].splitlines()[-1].strip()[:40]}"


@pytest.mark.parametrize("block", BLOCKS, ids=name)
def test_a_block_of_code_measures(block: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if "lightning" in block[1]:
        pytest.importorskip("lightning")
    exec(block[1], {}, names := Names(tmp_path))
    files = [StepFile(file).records() for file in tmp_path.rglob("geomprobe.jsonl")]
    assert "final_norm" in capsys.readouterr().out or names.logged or any(files)


def test_what_the_tables_name_runs(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    found = cells()
    assert len(found) > 12
    for code in found:
        if code not in SHOWN and not code.startswith(COMMANDS):
            exec(code, {}, names := Names(tmp_path))
            assert names.logged or "writer" not in code


def test_the_pages_name_a_block_for_each_loop() -> None:
    told = "".join(code for _, code in BLOCKS)
    assert {"Trainer(", "lightning.Trainer(", "log_reading(", "Decoder("} <= set(re.findall(r"[\w.]+\(", told))
