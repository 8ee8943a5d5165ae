"""experiment bridges: the same tower, language model and batches with each bridge, asked about the same unseen scenes."""

from __future__ import annotations

import json
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.app.verbs.result import Result, plain
from sightline.errors import UsageError

if TYPE_CHECKING:
    from sightline.evaluation.vqa_data import VqaData
    from sightline.models.vlm.llava import Llava
    from sightline.training.bridge_experiment import BridgeExperiment

SPLIT = "test"
TIMED, WARM = 24, 3  # questions that are timed one by one, after so many that are not
LONGEST = 32  # tokens of an answer
RESULT = "result.json"


@dataclass(frozen=True, kw_only=True)
class MeasuredBridge:
    """One bridge. accuracy, low, high: of all questions, with a 95 % interval; by_type: of each type of question.

    tokens: positions of the language model that a picture takes; beside: tokens of it that words look at between the
    layers. parameters: of the bridge. step_ms: median of a training step; answer_ms: of one answer, its picture included.
    """

    bridge: str
    tokens: int
    beside: int
    parameters: int
    steps: int
    step_ms: float
    answer_ms: float
    accuracy: float
    low: float
    high: float
    by_type: dict[str, float]


@dataclass(kw_only=True)
class BridgeComparison(Result):
    """scenes: drawn to learn from; test_scenes: unseen ones that were asked about. things: how many they show.

    asked: questions by type. guessed: the share that is right if every type's commonest answer is always given,
    without a look; "" is all questions. page, plot: what was written.
    """

    out: Path
    vision: str
    steps: int
    batch_size: int
    scenes: int
    things: list[str]
    test_scenes: int
    asked: dict[str, int]
    guessed: dict[str, float]
    bridges: list[MeasuredBridge] = field(default_factory=list)
    page: Path | None = None
    plot: Path | None = None

    def records(self) -> list[dict[str, Any]]:
        """A line for each bridge, and before them what is the same for all."""
        same = {k: v for k, v in self.to_dict().items() if k != "bridges"}
        return [same, *(plain(asdict(bridge)) for bridge in self.bridges)]


def experiment_bridges(
    out: str | Path = "runs/bridges",
    *,
    bridges: Sequence[str] | str | None = None,
    steps: int | None = None,
    scenes: int | None = None,
    test_scenes: int = 200,
    settings: Iterable[str] = (),
    bank: str | Path | None = None,
    quiet: bool = False,
) -> BridgeComparison:
    """Train one small LLaVA with each bridge at equal steps, seed and batches, and ask each the same questions.

    The same call goes on where it was stopped, and does not repeat a bridge that is done; more bridges may be named.
    bridges: names, as a list or with commas; by default all six that have a small size here. steps: of each bridge.
    scenes: drawn to learn from. test_scenes: unseen ones. settings: "key=value" changes of the recipe tabletop-llava,
    such as things=1-1,1-3, words_steps=150 or width=128. bank: a folder of scenes drawn before, by default out/scenes.
    Raises UsageError for an unknown bridge or setting, TrainingError for a folder that holds another experiment.
    """
    from sightline.training.bridge_experiment import BridgeExperiment, chosen

    names = chosen(bridges.split(",") if isinstance(bridges, str) else bridges)
    for what, count in (("steps", steps), ("scenes", scenes), ("test_scenes", test_scenes)):
        if count is not None and count < 1:
            raise UsageError(f"{what}={count} measures nothing; give at least 1.")
    said = [f"{key}={value}" for key, value in (("steps", steps), ("scenes", scenes)) if value is not None]
    experiment = BridgeExperiment(
        Path(out), settings=[*settings, *said], bank=Path(bank) if bank is not None else None, quiet=quiet
    )
    experiment.claim()
    data = unseen_questions(experiment, test_scenes)
    measured = [_measured(experiment, name, data) for name in names]
    plan = experiment.plan
    done = BridgeComparison(
        out=Path(out), vision=plan.vision, steps=plan.options.steps or 0, batch_size=plan.batch_size,
        scenes=plan.scenes, things=list(plan.things), test_scenes=test_scenes,
        asked=dict(sorted(Counter(row.type for row in data.rows).items())), guessed=guesses(data), bridges=measured,
    )  # fmt: skip
    _write(done)
    return done


def unseen_questions(experiment: BridgeExperiment, count: int) -> VqaData:
    """One question of every type about each of `count` scenes of the test split, of as many things as were learned from,
    in turn."""
    from sightline.evaluation.tabletop import scenes
    from sightline.evaluation.vqa_data import scene_questions

    shares = list(dict.fromkeys(experiment.things))
    each = [count // len(shares) + (number < count % len(shares)) for number in range(len(shares))]
    drawn = [
        truth
        for share, some in zip(shares, each, strict=True)
        for truth in scenes(some, SPLIT, experiment.plan.image_size, share)
    ]
    return scene_questions(drawn)


def guesses(data: VqaData) -> dict[str, float]:
    """What share of each type, and of all (""), one gets right with the commonest answer of the type."""
    by_type: dict[str, Counter[str]] = {}
    for row in data.rows:
        by_type.setdefault(row.type, Counter())[row.truths[0]] += 1
    best = {kind: counts.most_common(1)[0][1] for kind, counts in sorted(by_type.items())}
    shares = {kind: right / by_type[kind].total() for kind, right in best.items()}
    return {"": sum(best.values()) / len(data), **shares}


def _measured(experiment: BridgeExperiment, name: str, data: VqaData) -> MeasuredBridge:
    """Of one bridge, read where it was written before for the same questions."""
    from sightline.app.verbs.evaluating_speech import evaluate_vqa
    from sightline.training.cache import replace_text

    folder, asked = experiment.out / name, data.fingerprint()
    note = folder / RESULT
    if note.is_file():
        kept = json.loads(note.read_text(encoding="utf-8"))
        if kept["questions"] == asked:
            return MeasuredBridge(**kept["measured"])
    crossed = experiment.train(name)
    done = evaluate_vqa(data, model=crossed.model, calibrate=False, max_new_tokens=LONGEST, out=folder, batch_size=16)
    scores = {score.metric: score for score in done.scores}
    total, start = scores["exact"], "exact, type "
    measured = MeasuredBridge(
        bridge=name, tokens=crossed.tokens, beside=crossed.beside, parameters=crossed.parameters, steps=crossed.steps,
        step_ms=crossed.step_ms, answer_ms=_answer_ms(crossed.model, data), accuracy=total.value, low=total.low,
        high=total.high,
        by_type={k.removeprefix(start): s.value for k, s in sorted(scores.items()) if k.startswith(start)},
    )  # fmt: skip
    replace_text(note, json.dumps({"questions": asked, "measured": asdict(measured)}, indent=1) + "\n")
    return measured


def _answer_ms(model: Llava, data: VqaData) -> float:
    """Milliseconds of an answer to one question at a time, from the pixels on: the median."""
    from sightline.app.verbs.asking import open_answerer
    from sightline.models.language.generate import Generation

    answerer = open_answerer(model, batch_size=1, calibrate=False)
    spent = []
    for number in range(WARM + TIMED):
        row = data.rows[number % len(data)]
        began = time.perf_counter()
        answerer.ask(data.read(row.picture), row.question, options=Generation(max_new_tokens=LONGEST))
        spent.append(1000 * (time.perf_counter() - began))
    return statistics.median(spent[WARM:])


def _write(done: BridgeComparison) -> None:
    """The page, the plot and the lines, beside the runs."""
    from sightline.app.bridges_page import accuracy_plot, bridges_page

    done.page, done.plot = done.out / "bridges.html", done.out / "bridges.png"
    accuracy_plot(done).save(done.plot)
    bridges_page(done).write(done.page)
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in done.records())
    (done.out / "bridges.jsonl").write_text(lines, encoding="utf-8")
