"""Which bridge? One tower, one language model, one world, the same batches: only the bridge differs.

words     the language model alone learns to read and write; once, for all
then for every bridge, from those words and first weights of its own:
stage 1   the bridge alone, from captions, if `bridge_steps` asks for it
stage 2   bridge and language model, from all kinds of turns

Every stage is a run of its own below one folder and goes on where it stopped. What the frozen tower sees is kept once.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sightline.errors import TrainingError, UsageError
from sightline.models.bridges import KINDS, BridgeConfig
from sightline.models.language.llama import Llama
from sightline.models.vlm.llava import Llava
from sightline.training.assembling import GATED
from sightline.training.first_decoder import new_decoder
from sightline.training.lesson_bank import LessonBank
from sightline.training.recipes.llava import LlavaRecipe, llava_recipe, things_of
from sightline.training.stages import run
from sightline.training.tabletop_llava import (
    bridge_stage,
    drawn_lessons,
    prepare_stage,
    with_bridge,
    words_stage,
)

SETTINGS = (  # of "tabletop-llava", so that a CPU is done within minutes; its tower has learned to see already
    "vision=sightline:tabletop-llava",
    "things=1-1", "scenes=4000", "steps=150", "words_steps=100", "bridge_steps=0", "simple_steps=0", "few_steps=0",
    "warmup=20", "checkpoint_every=50", "log_every=10", "look_layer=none", "alike=0",
)  # fmt: skip
_RESAMPLER = BridgeConfig(kind="perceiver", queries=32, num_layers=2, heads=3, head_size=64, intermediate=576)
BRIDGES = {  # the published sizes, made for language models of 2,048 and more, would be many times this whole model
    "linear": BridgeConfig(kind="linear"),
    "mlp2x_gelu": BridgeConfig(kind="mlp2x_gelu"),
    "pixel_shuffle": BridgeConfig(kind="pixel_shuffle"),
    "qformer": BridgeConfig(kind="qformer", queries=32, num_layers=4, hidden=192, heads=3),
    "perceiver": _RESAMPLER,
    GATED: _RESAMPLER.replace(kind=GATED),
}
FIXED = ("bridge", "learns", "lora_rank", "template")  # settings that would make it another experiment
WHAT = "experiment.json"


@dataclass(frozen=True, kw_only=True)
class Crossed:
    """A model that learned with one bridge.

    tokens: positions of the language model that a picture takes. beside: tokens of it that words look at between the
    layers. parameters: of the bridge (with gated blocks, if there are any). step_ms: the median of the log.
    """

    bridge: str
    model: Llava
    tokens: int
    beside: int
    parameters: int
    steps: int
    step_ms: float


class BridgeExperiment:
    """The runs of one experiment below `out`.

    settings: changes of the recipe "tabletop-llava", after those of SETTINGS. bank: a folder of drawn scenes.
    Raises UsageError for a setting that this experiment fixes, TrainingError for a folder that holds another one.
    """

    def __init__(
        self, out: Path, *, settings: Iterable[str] = (), bank: Path | None = None, quiet: bool = False
    ) -> None:
        given = list(settings)
        for key in (text.partition("=")[0] for text in given):
            if key in FIXED:
                raise UsageError(f"{key} is the same for all bridges here and cannot be set; leave it out.")
        self.plan = llava_recipe("tabletop-llava", _last([*SETTINGS, *given]))
        self.things = things_of(self.plan)
        self.out, self.bank, self.quiet = out, bank, quiet

    @property
    def digest(self) -> str:
        """Of everything that decides what is learned."""
        return hashlib.sha256(repr(self.plan).encode()).hexdigest()[:16]

    def claim(self) -> None:
        """Note in the folder what it holds. Raises TrainingError where that is something else."""
        note = self.out / WHAT
        if note.is_file():
            if json.loads(note.read_text(encoding="utf-8")).get("digest") != self.digest:
                raise TrainingError(f"{self.out} holds an experiment with other settings; choose another --out.")
            return
        self.out.mkdir(parents=True, exist_ok=True)
        settings = {k: v for k, v in dataclasses.asdict(self.plan).items() if k not in (*FIXED, "what")}
        note.write_text(json.dumps({"digest": self.digest, "settings": settings}, indent=1) + "\n", encoding="utf-8")

    @cached_property
    def lessons(self) -> LessonBank:
        return drawn_lessons(self.plan, self.bank or self.out / "scenes", quiet=self.quiet)

    @cached_property
    def decoder(self) -> Llama:
        """The language model that can read and write, before it ever saw a picture."""
        decoder = new_decoder(self.plan, self.lessons.texts())
        stage = words_stage(self.plan)
        if stage.options.steps:
            taught = with_bridge(self.plan, copy.deepcopy(decoder), "linear")
            self._run(stage, taught, self.out / "words")
            decoder.load_state_dict(taught.language.state_dict())
        return decoder

    def train(self, bridge: str) -> Crossed:
        """From the words to a model that sees through this bridge; what is done of it already is not done again."""
        model = with_bridge(self.plan, copy.deepcopy(self.decoder), sized(bridge))
        stage, folder = bridge_stage(self.plan), self.out / bridge
        if stage.options.steps:
            self._run(stage, model, folder / "stage1")
        self._run(self.plan, model, folder)
        side = model.vision.config.image_size
        tokens = model.tokens_per_picture(side, side)
        read = _tokens_of_bridge(model, side)
        return Crossed(
            bridge=bridge, model=model, tokens=tokens, beside=read if bridge == GATED else 0,
            parameters=sum(p.numel() for part in model.crossing for p in part.parameters()),
            steps=self.plan.options.steps or 0, step_ms=_step_ms(folder / "log.jsonl"),
        )  # fmt: skip

    def _run(self, stage: LlavaRecipe, model: Llava, folder: Path) -> None:
        run(prepare_stage(stage, model, self.lessons, self.out, quiet=self.quiet), folder, quiet=self.quiet)


def sized(bridge: str) -> BridgeConfig:
    """A bridge by name, small where we know a small size. Raises UsageError for an unknown name."""
    if bridge not in BRIDGES and bridge not in KINDS:
        known = ", ".join(dict.fromkeys([*BRIDGES, *KINDS]))
        raise UsageError(f"bridge {bridge!r} is unknown; choose from {known}.")
    return BRIDGES.get(bridge) or BridgeConfig(kind=bridge)


def chosen(bridges: Sequence[str] | None) -> list[str]:
    """The names, each once; all of BRIDGES where none is given. Raises UsageError for an unknown one."""
    names = list(dict.fromkeys(name.strip() for name in bridges or BRIDGES if name.strip()))
    if not names:
        raise UsageError(f"no bridge was named; choose from {', '.join(BRIDGES)}.")
    for name in names:
        sized(name)
    return names


def _last(settings: Sequence[str]) -> list[str]:
    """Of settings said twice the last."""
    return list({text.partition("=")[0]: text for text in settings}.values())


def _tokens_of_bridge(model: Llava, side: int) -> int:
    """How many tokens the bridge itself makes of a picture."""
    patches = side // model.vision.config.patch_size
    return model.bridge.tokens_out((patches, patches))


def _step_ms(log: Path) -> float:
    """Milliseconds of a step, the median over the log's lines, whichever process wrote them."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    size = next(line["run"]["batch_size"] for line in lines if "run" in line)
    rates = [line["items_per_s"] for line in lines if line.get("items_per_s")]
    return 1000 * size / statistics.median(rates) if rates else float("nan")
