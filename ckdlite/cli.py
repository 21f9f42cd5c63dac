"""The command line: `ckdlite fit|validate|test`, by LightningCLI, and `ckdlite report`.

A run is a file: a base (data, network, trainer) and overlays (method), given by name from
`ckdlite/recipes` or by path, and any value by `--key value`. Chapter 3.4 runs it.
"""

import difflib
import json
import logging
import os
import signal
import sys
import threading
import warnings
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentError, ArgumentParser, DefaultHelpFormatter
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from . import __version__, datamodules, memory, training  # noqa: F401 (classes known by short name)
from .runs import RunError, checkpoint, keep, precision, read, resume

#: The folder of the recipes.
#:
#: :meta hide-value:
RECIPES = Path(__file__).parent / "recipes"

_ABOUT = """\
Train a teacher, and distil a spiking student from it.

  ckdlite fit --config scenes --config teacher --run runs/teacher
  ckdlite fit --config scenes --config paper --run runs/paper \\
      --model.teacher_weights runs/teacher
  ckdlite test --run runs/paper
  ckdlite report --run runs/paper

A configuration is a recipe's name or a file; later ones overlay earlier ones, and options overlay
all. The same command again goes on with a run that was interrupted. Recipes: {recipes}.
`ckdlite fit --model.help ckdlite.training.Distil` explains the settings of a class, and
`--print_config` after all others shows every value. `ckdlite report` draws a run as one HTML page.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    _quiet()
    memory.reuse()
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if given[:1] == ["report"]:
            _report(given[1:])
        else:
            _CLI(_with_configs(given))
    except (RunError, ArgumentError, FileNotFoundError, MisconfigurationException) as error:
        print(f"ckdlite: {_plain(error)}", file=sys.stderr)
        return 1
    except OSError as error:
        print(
            f"ckdlite: {error}. What the run has saved is kept; mend this and give the same "
            "command again: it goes on from the last whole epoch",
            file=sys.stderr,
        )
        return 1
    return 0


def _report(arguments: list[str]) -> None:
    from .report import report  # it wants more than training does

    about = "Draw a run as one HTML page, made from its folder; one that is there is written anew."
    parser = ArgumentParser(prog="ckdlite report", description=about, exit_on_error=False)
    parser.add_argument("--run", type=Path, required=True, help="the run's folder")
    parser.add_argument("--out", type=Path | None, help="the page; default: RUN/report.html")
    print(report(**parser.parse_args(arguments).as_dict()))


def _plain(error: Exception) -> str:
    """What an error says, without the types that jsonargparse tried and the tree of settings."""
    noise = ("Does not validate against any", "Subtypes:", "Errors:", "Given value")
    noise += ("- Expected a <class 'NoneType'>",)
    lines = str(error).splitlines()
    return "\n".join(line for line in lines if not line.strip().startswith(noise))


def _quiet() -> None:
    """Leave out what Lightning says of every run of ours, and what it advertises."""
    for message in (
        ".*does not have many workers.*",  # the scenes are in memory
        ".*in eval mode at the start of training.*",  # the teacher is, on purpose
        ".*smaller than the logging interval.*",  # short epochs
        ".*exists and is not empty.*",  # a run that goes on
        ".*LeafSpec.* is deprecated.*",  # Lightning's own
    ):
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_no_tip)


def _no_tip(record: logging.LogRecord) -> bool:
    return "Tip:" not in record.getMessage()


class _Help(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Leaves the lines of the description as they are."""


class _CLI(LightningCLI):
    def __init__(self, arguments: ArgsType) -> None:
        about = _ABOUT.format(recipes=", ".join(sorted(p.stem for p in RECIPES.glob("*.yaml"))))
        # Errors come to `main`, and an option that is cut short is unknown.
        strict = {"description": about, "formatter_class": _Help}
        strict |= {"exit_on_error": False, "allow_abbrev": False}
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,  # `fit` writes it, into the run's folder
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_kwargs={**strict, "prog": "ckdlite", "version": __version__}
            | {name: strict for name in self.subcommands()},
            args=arguments,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        skipped = {"model", "datamodule"}
        return {
            "fit": skipped | {"train_dataloaders", "val_dataloaders", "ckpt_path", "weights_only"},
            "validate": skipped | {"dataloaders", "verbose", "ckpt_path", "weights_only"},
            "test": skipped | {"dataloaders", "verbose", "ckpt_path", "weights_only"},
        }

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        self.config = parser.parse_args(args)  # without the warning about sys.argv

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--run", type=Path, required=True, help="the run's folder")
        parser.add_argument(
            "--checkpoint",
            default="best",
            help="what to validate or test: best (on validation; default), last, or a file",
        )
        parser.add_argument(
            "--select_on_test",
            type=bool,
            default=False,
            help="choose the best epoch on the test images, as the released code does: its score "
            "on them is then too good",
        )

    def before_instantiate_classes(self) -> None:
        seed = self._get(self.config, "seed_everything")
        for part in ("model", "data"):
            settings = self._get(self.config, part).get("init_args", {})
            if "seed" in settings:
                settings.seed = seed  # one seed fixes everything
            if self.subcommand != "fit" and "teacher_weights" in settings:
                # The checkpoint holds the teacher too, wherever it was first loaded from.
                settings.teacher_weights = None

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except ValueError as error:  # what jsonargparse makes of any error of a class
            raise RunError(_plain(error).strip().removeprefix("- ")) from error
        if self._get(self.config, "select_on_test"):
            if not hasattr(self.datamodule, "select_on_test"):
                raise RunError(
                    f"--select_on_test: {type(self.datamodule).__name__} cannot validate on its "
                    "test images; leave the option out"
                )
            self.datamodule.select_on_test = True
            self._say(
                "WARNING: --select_on_test: the best epoch is chosen on the test images. What this "
                "run scores on them is too good; test.json says so"
            )

    def instantiate_trainer(self) -> Trainer:
        kept = keep(self._get(self.config, "run"))
        callbacks = kept.pop("callbacks")
        settings = dict(self._get(self.config_init, "trainer"))
        if self.subcommand != "fit":
            kept["logger"] = []  # scores are printed, and those of the test written down
        if settings["precision"] is None and not settings["plugins"]:
            settings["precision"] = precision(settings["accelerator"])
        for key in ("logger", "plugins"):  # the user's, and ours
            own = settings[key] if isinstance(settings[key], list) else [settings[key]]
            kept[key] = [*kept[key], *(x for x in own if not isinstance(x, bool | None))]
        return self._instantiate_trainer(settings | kept, callbacks)

    def fit(self, model: LightningModule, datamodule: LightningDataModule) -> None:
        run = self._get(self.config, "run")
        start = resume(run)
        if start is not None:
            self._say(f"{run} holds a run; going on with it")
        elif self.trainer.is_global_zero:
            run.mkdir(parents=True, exist_ok=True)
            self._parser("fit").save(
                self.config.fit,
                run / "config.yaml",
                overwrite=True,
                multifile=False,
                skip_unset=False,  # a None that is given is not the default
            )
        self.trainer.callbacks += [
            LambdaCallback(
                on_fit_start=lambda *_: self._about(),
                on_train_start=lambda *_: self._listen(),  # again: Lightning has set its own
            )
        ]
        before = self._listen()
        try:
            self.trainer.fit(model, datamodule, ckpt_path=start)
        except RuntimeError as error:
            if "DataLoader worker (pid" not in str(error):
                raise
            raise RunError(
                f"a process that loads data has ended: {str(error).partition(chr(10))[0].strip()} "
                "Most often memory was short: give fewer of them (--data.workers), or the machine "
                "or container more shared memory (/dev/shm). The same command goes on from the "
                "last whole epoch"
            ) from error
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _say(self, text: str) -> None:
        if self.trainer.is_global_zero:
            for line in text.splitlines():
                print(f"ckdlite: {line}", file=sys.stderr)

    def _about(self) -> None:
        if hasattr(self.model, "about") and hasattr(self.datamodule, "batch_size"):
            self._say(self.model.about())

    def _listen(self) -> dict[signal.Signals, Any]:
        """End at once where the run is told to: what it has saved is whole at any moment.

        Lightning would end it after the step, with status 0; in SLURM it would save a checkpoint
        from the middle of an epoch, and the order of the epoch's images is not in it.
        """
        if threading.current_thread() is not threading.main_thread():
            return {}  # of several runs side by side in one process; Python allows no handler here
        numbers = [signal.SIGTERM, *([signal.SIGUSR1] if SLURMEnvironment.detect() else [])]
        return {number: signal.signal(number, self._stop) for number in numbers}

    def _stop(self, number: int, _frame: Any) -> None:
        if self.trainer.is_global_zero:
            text = (
                f"\nckdlite: stopped by {signal.Signals(number).name}; the epoch in hand is lost. "
                "The same command goes on from the last whole epoch\n"
            )
            os.write(sys.stderr.fileno(), text.encode())
        if self.trainer.strategy.launcher is not None:
            self.trainer.strategy.launcher.kill(signal.SIGKILL)  # the processes that it started
        os._exit(128 + number)

    def validate(self, model: LightningModule, datamodule: LightningDataModule) -> None:
        self.trainer.validate(model, datamodule, ckpt_path=self._weights())

    def test(self, model: LightningModule, datamodule: LightningDataModule) -> None:
        path = self._weights()
        written = self._get(self.config, "run") / "test.json"
        if written.exists():
            raise RunError(
                f"{written} is there: this run was tested. The test set answers once, after all "
                f"choices are made; remove the file if you mean it. It says:\n{written.read_text()}"
            )
        (scores,) = self.trainer.test(model, datamodule, ckpt_path=path)
        saved = read(path)
        chosen = "nothing: the last epoch" if path.stem == "last" else "validation"
        said = {
            "checkpoint": path.name,
            "epoch": saved["epoch"],
            "selected_on": "test" if saved["recipe"]["data"].get("select_on_test") else chosen,
            "scores": {name.removeprefix("test/"): value for name, value in scores.items()},
            "torch": torch.__version__,
            "ckdlite": __version__,
        }
        if self.trainer.is_global_zero:
            written.write_text(json.dumps(said, indent=2) + "\n")

    def _weights(self) -> Path:
        """The checkpoint to score."""
        which = self._get(self.config, "checkpoint")
        if which in ("best", "last"):
            return checkpoint(self._get(self.config, "run"), which)
        return Path(which)


def _with_configs(arguments: list[str]) -> list[str]:
    """The arguments with recipes' names made paths, and for a score the run's own settings."""
    given = []
    for argument in arguments:
        # --config=NAME is the same as --config NAME
        head, equals, tail = argument.partition("=")
        given += [head, tail] if equals and head in ("--config", "-c", "--run") else [argument]
    for i, argument in enumerate(given):
        if i and given[i - 1] in ("--config", "-c"):
            given[i] = _config(argument)
    scores = given[:1] and given[0] in ("validate", "test")
    if scores and "--run" in given[:-1] and not {"--config", "-c"} & set(given):
        kept = Path(given[given.index("--run") + 1]) / "config.yaml"
        if not kept.exists():
            raise RunError(f"{kept} is missing: no run is there; give the --run of `ckdlite fit`")
        given[1:1] = ["--config", str(kept)]
    return given


def _config(name: str) -> str:
    if Path(name).is_file():
        return name
    if (RECIPES / f"{name}.yaml").is_file():
        return str(RECIPES / f"{name}.yaml")
    known = sorted(p.stem for p in RECIPES.glob("*.yaml"))
    near = difflib.get_close_matches(name, known)
    raise RunError(
        f"--config: got {name!r}, which is neither a file nor a recipe; "
        f"{'near it is' if near else 'recipes are'} {', '.join(near or known)}"
    )


if __name__ == "__main__":
    sys.exit(main())
