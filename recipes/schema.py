"""The typed dataclasses of a recipe: the only definition of what a recipe may say.

A recipe is a YAML tree; `recipes.compose` builds it and holds it against these classes. Every field that a user may
set stands here, with its unit and its meaning. Fields without a default must be given by the recipe.
"""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any, Literal, get_args

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

strict = ConfigDict(extra="forbid", strict=True, validate_default=True, allow_inf_nan=False)

Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Floor = Literal["mean", "position_mean", "pixels", "ridge", "ridge_local", "skip", "mlp", "shuffled"]  # distill.floors
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(config=strict, kw_only=True)
class Run:
    """Where a run writes."""

    dir: Text | None = None  # default: runs/<recipe>
    name: Text | None = None  # default: the time at which the run starts
    tensorboard: bool = True  # whether what metrics.jsonl holds is written for TensorBoard, too


@dataclass(config=strict, kw_only=True)
class Data:
    """Which clips. `source` says which of the entries below count."""

    source: Literal["demo", "world", "folder", "csv", "webdataset", "store", "oracle"]
    root: Text | None = None  # folder: DIR/<class>/video; csv: what relative paths are relative to
    csv: Text | None = None  # path,label[,split,group,start,end,factor.NAME]
    tars: Text | None = None  # WebDataset tars of video files: a path, a glob or a brace pattern
    clips: Count = 80  # demo, world: how many clips to render; oracle: how many train clips to draw
    seed: Seed = 0  # demo, world, oracle: which one
    split: Literal["combination", "random"] = "combination"  # world: what makes a test clip, unseen pairings or a hash
    difficulty: Share = 0.5  # world: how hard the object is to see
    clip_seconds: Positive = 2.0  # length of a clip where no start and end are given
    clips_per_video: Count = 1  # spread evenly over the video
    group: Text | None = None  # regular expression on the path; what it captures is the group. Default: the file
    max_refused: Share = 0.5  # share of clips that may be refused before the run stops


@dataclass(config=strict, kw_only=True)
class Oracle:
    """A student and a teacher of known optimum (distill.oracles), which data=oracle draws."""

    kind: Literal["field", "nonlinear", "routed", "retrieval"]
    size: Literal["tiny", "medium"] = "tiny"
    noise: NotNegative = 1.0  # of the student's tokens, in deviations of a field
    decay: NotNegative | None = None  # the power of field n falls as n ** -decay; null: 0 in tiny, 1 in medium
    degrees: list[Count] = field(default_factory=lambda: [2])  # nonlinear: of the Hermite polynomials
    reach: NotNegative = 0.2  # routed: largest displacement, as a fraction of the view
    val: Count = 100  # clips
    test: Count = 500  # clips


@dataclass(config=strict, kw_only=True)
class Store:
    """Where feature columns live."""

    path: Text | None = None  # a folder, by default features/<digest of data, view and backbones>; data=store: or a URL
    cache: Text | None = None  # behind a URL: where shards are kept; default: ~/.cache/tokenbridge/stores
    cache_gb: Positive | None = None  # behind a URL: how much of them is kept, the latest fetched; default: all
    codec: Literal["int8", "fp16"] = "int8"
    clips_per_shard: Count | None = None  # default: about 512 MB of the student
    extend: bool = False  # whether clips that the store at `path` does not have are added to it
    share: Text | None = None  # K/N: shards.precompute makes every N-th shard from the K-th on, other jobs the rest


@dataclass(config=strict, kw_only=True)
class Backbones:
    """What all backbones of a recipe share."""

    weights: Text = "standin"  # standin | pretrained | miniature | a folder that holds a folder per backbone name
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 on a GPU, fp32 on a CPU
    batch: Count | None = None  # clips per forward. Default: 1 on a CPU, what fills the memory on a GPU


@dataclass(config=strict, kw_only=True)
class Backbone:
    """One frozen video model. `backbone` is a name of teachers.BACKBONES; the rest are its options."""

    backbone: Text
    checkpoint: Text | None = None  # hub id of published weights, for weights=pretrained
    revision: Text | None = None  # the commit of the checkpoint
    licence: Text | None = None
    weights: Text | None = None  # overrules backbones.weights
    options: dict[str, Any] = field(default_factory=dict)  # keyword arguments of the backbone's factory
    clips: Count | None = None  # of a target: how many clips of the store it is run on, drawn by a hash. Default: all
    stored: list[str] = field(default_factory=list)  # tokens beside the grid that the store keeps
    special: list[str] = field(default_factory=list)  # those of them that are converted, e.g. [cls]


@dataclass(config=strict, kw_only=True)
class ConverterSpec:
    """Skip + branch."""

    family: Text  # a name of converters.FAMILIES
    skip: Literal["linear", "none"] = "linear"
    normaliser: Literal["position", "global"] = "position"
    options: dict[str, Any] = field(default_factory=dict)  # the family's own: width, latents, ...


@dataclass(config=strict, kw_only=True)
class Deficiency:
    """What a converter is deliberately deprived of (distill.deficiency): `strength` times the settings of its kind."""

    kind: Literal["low_rank", "masking", "jacobian", "combined"]  # combined: low_rank and masking
    strength: NotNegative = 1.0  # multiplies nuclear, ratio, entropy and jacobian
    zero_until: Share = 0.1  # share of the steps without it
    full_from: Share = 0.4  # share of the steps from which on it is whole; linear in between
    nuclear: NotNegative = 1.0  # low_rank: weight of the answers' nuclear norm per channel; half is taken off a value
    rank: Count | None = None  # low_rank: a hard limit, from the first step; at most the targets' width
    ratio: Annotated[float, Field(ge=0, lt=1)] = 0.5  # masking: share of the student's places that are hidden
    entropy: NotNegative = 0.1  # masking: weight of the hinge on attention's entropy, in families that attend
    entropy_target: Share = 0.5  # masking: share of the largest entropy down to which the hinge pulls
    jacobian: NotNegative = 1.0  # jacobian: weight of |J|^2 per channel over the answer's variance
    every: Count = 8  # jacobian: steps from one estimate to the next
    directions: Count = 1  # jacobian: random ones of an estimate
    outputs: Count = 16  # jacobian: answered tokens of a target that an estimate looks at


@dataclass(config=strict, kw_only=True)
class Contestant(ConverterSpec):
    """A converter of a contest."""

    deficiency: Deficiency | None = None  # its own; default: the recipe's


@dataclass(config=strict, kw_only=True)
class Train:
    """The training loop."""

    steps: Count = 80
    batch: Count = 8  # clips per optimizer step, over all ranks and accumulation steps
    accumulation: Count = 1  # micro-batches per optimizer step
    lr: Positive = 1e-3
    skip_lr: Share = 0.1  # the rate of what starts at the ridge, as a share of lr: the skip, a bottleneck
    min_lr: NotNegative = 1e-6
    warmup: Share = 0.05  # share of the steps
    weight_decay: NotNegative = 0.02
    betas: list[float] = field(default_factory=lambda: [0.9, 0.99])
    clip_norm: Positive = 1.0
    queries: Count | None = 512  # target positions decoded per step, stratified over the grid; null: all
    ema: Share = 0.999  # decay min(ema, (1+t)/(10+t)); 0: no average
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 on a GPU, fp32 on a CPU
    seed: Seed = 0
    checkpoint_every: Count = 50  # steps
    validate_every: Count = 20  # steps
    resume: Literal["no", "auto"] = "no"  # auto: continue run.dir/run.name from its newest checkpoint


@dataclass(config=strict, kw_only=True)
class Objective:
    """Weights of the loss's terms (distill.losses)."""

    mse: NotNegative = 1.0
    smooth_l1: NotNegative = 0.0
    cosine: NotNegative = 0.5
    gram: NotNegative = 0.1
    moments: NotNegative = 0.0  # the report's soft match of batch mean and deviation
    gram_tokens: Count = 128


@dataclass(config=strict, kw_only=True)
class Engine:
    """DeepSpeed."""

    zero: Literal[0, 1] = 0


@dataclass(config=strict, kw_only=True)
class Evaluate:
    """What is measured after training."""

    floors: list[Floor] = field(default_factory=lambda: list(get_args(Floor)))
    # student_frames, shifts: the teachers on other renderings of the test clips; large: a converter without a budget,
    # trained beside the others at several times their cost (distill.references)
    references: list[Literal["student_frames", "shifts", "large"]] = field(
        default_factory=lambda: ["student_frames", "shifts"]
    )
    # shuffled: the ridge is solved on wrongly paired clips; full: the whole converter is trained on such, too
    controls: Literal["shuffled", "full"] = "shuffled"
    # at which the mlp floor is trained, as multiples of train.lr; the best on val stands in the report
    mlp_rates: Annotated[list[Positive], Field(min_length=1)] = field(default_factory=lambda: [1.0, 0.3, 3.0])
    bootstrap: Count = 2000  # resamples of groups
    cka_positions: Count = 16
    # what is told of the clips' labels from student, teacher and converted tokens (distill.probe); a minute or more
    probes: list[Literal["linear", "attentive"]] = field(default_factory=list)


@dataclass(config=strict, kw_only=True)
class Head:
    """Classifiers on pooled tokens, fitted once the converters are trained (distill.arms); without tasks, none."""

    tasks: list[Text] = field(default_factory=list)  # what is told of a clip: label, or a factor's name
    per_class: list[Count | None] = field(default_factory=lambda: [None])  # train labels of a class; null: all
    rank: Count = 8  # of the residual; at most the student's width
    pooling: Literal["mean", "attentive"] = "mean"
    weights: Literal["none", "balanced"] = "none"  # of the classes
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of the labels: share that goes to all classes alike
    separator: Text | None = None  # of several labels that one clip may have, as in run;jump; null: it has one


@dataclass(config=strict, kw_only=True)
class Recipe:
    """A whole recipe."""

    recipe: Text  # its name
    data: Data
    student: Backbone
    targets: dict[str, Backbone]
    converter: ConverterSpec | None = None  # either this one,
    contest: dict[str, Contestant] = field(default_factory=dict)  # or several: name -> one (recipes.contest)
    run: Run = field(default_factory=Run)
    store: Store = field(default_factory=Store)
    backbones: Backbones = field(default_factory=Backbones)
    train: Train = field(default_factory=Train)
    objective: Objective = field(default_factory=Objective)
    deficiency: Deficiency | None = None
    oracle: Oracle | None = None
    engine: Engine = field(default_factory=Engine)
    evaluate: Evaluate = field(default_factory=Evaluate)
    head: Head = field(default_factory=Head)
