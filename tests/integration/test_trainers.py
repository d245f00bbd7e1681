"""Lightning, Accelerate and transformers' Trainer drive our optimizers and layers: every bit is as with torch's."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import reimpl
import reimpl.optim
from conftest import OPTIMIZERS
from helpers import assert_same
from reimpl.verify.distance import same_bits

pytestmark = [  # what the trainers themselves call or advise
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]

EPOCHS, BATCH, BATCHES = 2, 8, 3
OPTIONS = {
    "SGD": {"lr": 0.05, "momentum": 0.9, "nesterov": True},
    "AdamW": {"lr": 0.01, "amsgrad": True},
    "LBFGS": {"lr": 0.1, "max_iter": 2},
}
OURS, TORCHS = reimpl.optim, torch.optim


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Let nothing be fetched: all models have random weights, and all data are drawn here."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@dataclass
class Run:
    """What can be seen of a training."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    losses: list = field(default_factory=list)


def assert_same_runs(ours, theirs):
    """Assert that two trainings have the same losses, weights, buffers, options and state, in every bit."""
    assert len(theirs.losses) > 1
    assert ours.losses == theirs.losses
    first, second = (run.model.state_dict() for run in (ours, theirs))
    assert list(first) == list(second)
    assert all(same_bits(first[key], second[key]) for key in second)
    assert_same(ours.optimizer, theirs.optimizer)
    assert options_of(ours.optimizer) == options_of(theirs.optimizer)


def options_of(optimizer):
    return [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]


def network(optim):
    """Return a small convolutional network, swapped if the optimizers are ours."""
    torch.manual_seed(1)
    model = nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Dropout(0.2), nn.Linear(36, 5)),
    )
    if optim is OURS:
        assert len(reimpl.swap(model).swapped) == 8
    return model


def loader():
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(BATCH * BATCHES, 1, 6, 6, generator=generator)
    labels = torch.randint(5, (len(images),), generator=generator)
    return DataLoader(TensorDataset(images, labels), BATCH)


# Lightning.

LIGHTNING = {
    "plain": {},
    "clipped by norm": {"gradient_clip_val": 0.1},
    "clipped by value": {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
    "gradients accumulated": {"accumulate_grad_batches": 2},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "bf16-true": {"precision": "bf16-true"},
    "64-true": {"precision": "64-true"},
}


@pytest.fixture
def lightning():
    return pytest.importorskip("lightning")


def make_module(lightning, optim, optimizer, options, manual=False):
    """Return a LightningModule that trains `network`, and keeps its losses."""

    class Classifier(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = network(optim)
            self.losses = []
            self.automatic_optimization = not manual

        def training_step(self, batch, _):
            torch.manual_seed(self.global_step)  # Lightning's checkpoints do not hold the state of random numbers
            images, labels = batch
            if manual:
                self.optimizers().zero_grad()
            loss = nn.functional.cross_entropy(self.model(images.to(self.dtype)).float(), labels)
            self.losses.append(loss.item())
            if manual:
                self.manual_backward(loss)
                self.clip_gradients(self.optimizers(), 0.1, "norm")
                self.optimizers().step()
                self.lr_schedulers().step()
            return loss

        def configure_optimizers(self):
            made = getattr(optim, optimizer)(self.parameters(), **options)
            schedule = torch.optim.lr_scheduler.ExponentialLR(made, 0.9)
            return {"optimizer": made, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    return Classifier()


def fit(lightning, folder, optim, optimizer="AdamW", epochs=EPOCHS, start=None, manual=False, **arguments):
    """Let Lightning train, from a checkpoint if there is one; leave a checkpoint in the folder."""
    engine = {option: arguments.pop(option) for option in ("foreach", "fused") if option in arguments}
    options = OPTIONS.get(optimizer, {}) | engine
    module = make_module(lightning, optim, optimizer, options, manual)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **arguments,
    )
    trainer.fit(module, loader(), ckpt_path=start)
    trainer.save_checkpoint(folder / "last.ckpt")
    return Run(module.model, trainer.optimizers[0], module.losses)


@pytest.mark.parametrize("optimizer", [*OPTIMIZERS, "Adafactor", "LBFGS"])
def test_lightning(lightning, tmp_path, optimizer):
    assert_same_runs(*(fit(lightning, tmp_path, optim, optimizer) for optim in (OURS, TORCHS)))


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
@pytest.mark.parametrize("case", LIGHTNING)
def test_lightning_with(lightning, tmp_path, case, optimizer, foreach):
    runs = (fit(lightning, tmp_path, o, optimizer, foreach=foreach, **LIGHTNING[case]) for o in (OURS, TORCHS))
    assert_same_runs(*runs)


def test_lightning_optimized_by_hand(lightning, tmp_path):
    assert_same_runs(*(fit(lightning, tmp_path, optim, manual=True) for optim in (OURS, TORCHS)))


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW", "NAdam", "Adafactor", "LBFGS"])
def test_lightning_resumes_the_others_checkpoint(lightning, tmp_path, optimizer):
    """Written after one epoch by torch's classes and gone on with ours, and back: as if nothing had happened."""
    whole = fit(lightning, tmp_path, TORCHS, optimizer)
    for first, second in ((TORCHS, OURS), (OURS, TORCHS)):
        begun = fit(lightning, tmp_path, first, optimizer, epochs=1)
        ended = fit(lightning, tmp_path, second, optimizer, start=tmp_path / "last.ckpt")
        ended.losses = begun.losses + ended.losses
        assert_same_runs(ended, whole)


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW", "RMSprop"])
def test_lightning_with_a_kernel(lightning, tmp_path, optimizer):
    """The fused engine rounds elsewhere than torch does, but nowhere else than in a loop that one writes."""
    driven = fit(lightning, tmp_path, OURS, optimizer, fused=True)
    model = network(OURS)
    by_hand = Run(model, getattr(OURS, optimizer)(model.parameters(), fused=True, **OPTIONS.get(optimizer, {})))
    schedule = torch.optim.lr_scheduler.ExponentialLR(by_hand.optimizer, 0.9)
    for step, (images, labels) in enumerate(EPOCHS * list(loader())):
        torch.manual_seed(step)
        by_hand.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        by_hand.losses.append(loss.item())
        by_hand.optimizer.step()
        schedule.step()
    assert_same_runs(driven, by_hand)


def test_a_rate_off_in_the_seventh_digit_is_noticed(lightning, tmp_path, monkeypatch):
    theirs = fit(lightning, tmp_path, TORCHS)
    monkeypatch.setitem(OPTIONS, "AdamW", OPTIONS["AdamW"] | {"lr": 0.01000001})
    with pytest.raises(AssertionError):
        assert_same_runs(fit(lightning, tmp_path, OURS), theirs)


@pytest.mark.parametrize("optimizer", ["Adam", "Muon"])
def test_lightning_finds_optimizers_by_name(lightning, tmp_path, monkeypatch, optimizer):
    """On the command line: `--optimizer reimpl.optim.Adam --optimizer.lr 0.02`."""
    pytest.importorskip("jsonargparse")
    from lightning.pytorch.cli import LightningCLI

    class Linear(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(1)
            self.model = nn.Linear(36, 5, bias=False)
            self.losses = []

        def training_step(self, batch, _):
            images, labels = batch
            loss = nn.functional.cross_entropy(self.model(images.flatten(1)), labels)
            self.losses.append(loss.item())
            return loss

        def train_dataloader(self):
            return loader()

    monkeypatch.setattr("sys.argv", ["train.py"])  # the arguments of pytest are not meant
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of what Lightning calls
    runs = []
    for package in ("reimpl", "torch"):
        command = ["fit", f"--optimizer={package}.optim.{optimizer}", "--optimizer.lr=0.02"]
        command += ["--lr_scheduler=torch.optim.lr_scheduler.ExponentialLR", "--lr_scheduler.gamma=0.9"]
        quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
        command += [f"--trainer.{option}=false" for option in quiet]
        command += ["--trainer.max_epochs=2", "--trainer.accelerator=cpu", f"--trainer.default_root_dir={tmp_path}"]
        cli = LightningCLI(Linear, args=command, save_config_callback=None, seed_everything_default=3)
        runs.append(Run(cli.model.model, cli.trainer.optimizers[0], cli.model.losses))
    assert type(runs[0].optimizer) is getattr(reimpl.optim, optimizer)
    assert_same_runs(*runs)


# Accelerate.

ACCELERATE = {
    "plain": {},
    "gradients accumulated": {"gradient_accumulation_steps": 2},
    "bf16": {"mixed_precision": "bf16"},
    "batches split": {"split_batches": True},
}


@pytest.fixture
def accelerate():
    """The package, whose process-wide state is thrown away before and after."""
    package = pytest.importorskip("accelerate")
    package.state.AcceleratorState._reset_state(reset_partial_state=True)
    package.state.GradientState._reset_state()
    yield package
    package.state.AcceleratorState._reset_state(reset_partial_state=True)
    package.state.GradientState._reset_state()


def accelerated(accelerate, optim, optimizer="AdamW", save=None, start=None, epochs=EPOCHS, foreach=False, **arguments):
    """Let Accelerate train, from a folder if there is one, and into a folder if there is one."""
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    split = accelerate.utils.DataLoaderConfiguration(split_batches=arguments.pop("split_batches", False))
    accelerator = accelerate.Accelerator(cpu=True, dataloader_config=split, **arguments)
    model = network(optim)
    made = getattr(optim, optimizer)(model.parameters(), foreach=foreach, **OPTIONS.get(optimizer, {}))
    schedule = torch.optim.lr_scheduler.ExponentialLR(made, 0.9)
    model, prepared, batches, schedule = accelerator.prepare(model, made, loader(), schedule)
    torch.manual_seed(3)
    if start is not None:
        accelerator.load_state(start)
    run = Run(accelerator.unwrap_model(model), made)
    for _ in range(epochs):
        for images, labels in batches:
            with accelerator.accumulate(model):
                loss = nn.functional.cross_entropy(model(images), labels)
                run.losses.append(loss.item())
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 0.1)
                prepared.step()
                schedule.step()
                prepared.zero_grad()
    if save is not None:
        accelerator.save_state(save)
    return run


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_accelerate(accelerate, optimizer):
    assert_same_runs(*(accelerated(accelerate, optim, optimizer) for optim in (OURS, TORCHS)))


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
@pytest.mark.parametrize("case", ACCELERATE)
def test_accelerate_with(accelerate, case, optimizer, foreach):
    runs = (accelerated(accelerate, o, optimizer, foreach=foreach, **ACCELERATE[case]) for o in (OURS, TORCHS))
    assert_same_runs(*runs)


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW", "NAdam"])
def test_accelerate_resumes_the_others_state(accelerate, tmp_path, optimizer):
    """`save_state` keeps the random numbers' state too, so that dropout goes on as well."""
    whole = accelerated(accelerate, TORCHS, optimizer)
    for first, second in ((TORCHS, OURS), (OURS, TORCHS)):
        begun = accelerated(accelerate, first, optimizer, epochs=1, save=tmp_path)
        ended = accelerated(accelerate, second, optimizer, epochs=1, start=tmp_path)
        ended.losses = begun.losses + ended.losses
        assert_same_runs(ended, whole)


# transformers.

TRANSFORMERS = {
    "plain": {},
    "gradients accumulated": {"gradient_accumulation_steps": 2},
    "bf16": {"bf16": True},
    "not clipped, cosine schedule": {"max_grad_norm": 0.0, "lr_scheduler_type": "cosine", "warmup_steps": 2},
    "activation checkpointing": {"activation_checkpointing": True},
}


@pytest.fixture
def transformers(accelerate):  # the Trainer stands on it
    return pytest.importorskip("transformers")


def architecture(transformers, name):
    """Return a small model of random weights, and a data set for it."""
    torch.manual_seed(1)
    generator = torch.Generator().manual_seed(2)
    if name == "GPT-2":
        config = transformers.GPT2Config(
            vocab_size=40, n_positions=16, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
        )
        rows = torch.randint(40, (BATCH * BATCHES, 12), generator=generator)
        return transformers.GPT2LMHeadModel(config), [{"input_ids": row, "labels": row} for row in rows]
    config = transformers.ResNetConfig(
        num_channels=1, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=5, layer_type="basic"
    )
    images = torch.randn(BATCH * BATCHES, 1, 16, 16, generator=generator)
    labels = torch.randint(5, (len(images),), generator=generator)
    data = [{"pixel_values": image, "labels": label} for image, label in zip(images, labels, strict=True)]
    return transformers.ResNetForImageClassification(config), data


def train(transformers, folder, optim, name="GPT-2", given_as="class", optimizer="AdamW", start=None, **arguments):
    """Let the Trainer train, from a checkpoint if there is one; it leaves one in the folder every third step."""
    model, data = architecture(transformers, name)
    if optim is OURS:
        assert len(reimpl.swap(model).swapped) > 4
    cls, options = getattr(optim, optimizer), OPTIONS.get(optimizer, {})
    given = {"optimizer_cls_and_kwargs": (cls, options)}
    if given_as == "instance":
        given = {"optimizers": (cls(model.parameters(), **options), None)}
    settings = transformers.TrainingArguments(
        output_dir=folder,
        use_cpu=True,
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=BATCH,
        logging_steps=1,
        save_steps=3,
        weight_decay=0.1,
        seed=3,
        report_to="none",
        disable_tqdm=True,
        **arguments,
    )
    trainer = transformers.Trainer(model=model, args=settings, train_dataset=data, **given)
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train(resume_from_checkpoint=start)
    seen = [{key: log.get(key) for key in ("loss", "grad_norm", "learning_rate")} for log in trainer.state.log_history]
    return Run(model, trainer.optimizer.optimizer, seen)


@pytest.mark.parametrize("given_as", ["class", "instance"])
@pytest.mark.parametrize("optimizer", ["SGD", "AdamW", "Adafactor"])
@pytest.mark.parametrize("name", ["GPT-2", "ResNet"])
def test_transformers(transformers, tmp_path, name, optimizer, given_as):
    runs = (train(transformers, tmp_path, optim, name, given_as, optimizer) for optim in (OURS, TORCHS))
    assert_same_runs(*runs)


@pytest.mark.parametrize("case", TRANSFORMERS)
def test_transformers_with(transformers, tmp_path, case):
    assert_same_runs(*(train(transformers, tmp_path, optim, **TRANSFORMERS[case]) for optim in (OURS, TORCHS)))


@pytest.mark.parametrize("name", ["GPT-2", "ResNet"])
def test_transformers_resumes_the_others_checkpoint(transformers, tmp_path, name):
    whole = train(transformers, tmp_path / "whole", TORCHS, name)
    for first, second in ((TORCHS, OURS), (OURS, TORCHS)):
        folder = tmp_path / first.__name__
        train(transformers, folder, first, name)
        ended = train(transformers, folder, second, name, start=str(folder / "checkpoint-3"))
        assert_same_runs(ended, whole)


def test_transformers_knows_optimizers_by_its_own_names_alone(transformers, tmp_path):
    """What `TrainingArguments(optim=...)` takes is an enumeration, so that no class of another package has a name."""
    with pytest.raises(ValueError, match="is not a valid OptimizerNames"):
        transformers.TrainingArguments(output_dir=tmp_path, use_cpu=True, optim="reimpl.optim.AdamW")
