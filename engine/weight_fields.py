"""The sections of a recipe that name weights from elsewhere: a teacher, and what a model starts from."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from engine.values import Probability, Section

# A run folder, a checkpoint in one, an exported file, any weight file, or a name of timm's (timm:NAME, hf-hub:NAME).
Place = Annotated[str, Field(min_length=1)]
Kept = Literal["raw", "ema"]


class InitSection(Section):
    """Weights that a model starts from; a resumed run does not read them."""

    path: Place
    weights: Kept = "raw"
    reset_head: bool = False  # the head keeps its random values, whatever the file has
    strict: bool = True  # false: what fits is loaded


class DistillSection(Section):
    """A teacher's logits beside the labels: (1 - alpha) * loss + alpha * distillation loss."""

    teacher: Place
    teacher_weights: Kept = "raw"
    teacher_model: str | None = None  # for a file that does not say which model it belongs to
    teacher_image_size: PositiveInt | None = None  # for such a file; None: what timm says of the model
    kind: Literal["soft", "hard"] = "soft"
    two_heads: bool = False  # the student's second head learns from the teacher, the first from the labels
    alpha: Probability = 0.5
    temperature: PositiveFloat = 1.0  # soft
    normalise: Literal["batchmean", "numel"] = (
        "batchmean"  # soft; numel: by images * classes (Bai et al., code)
    )
    precision: Literal["bf16", "float32"] | None = (
        None  # of the teacher; None: bf16 unless the run is in float32
    )
