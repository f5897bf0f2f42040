"""Clinical prediction from irregular series and notes, with interleaved fusion (arXiv:2210.12156)."""

from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqattn.errors import SeqattnError, nearest
from seqattn.layers.imputation import Fill, regular_grid
from seqattn.layers.masking import length_mask
from seqattn.layers.modality_fusion import FUSIONS, build_trunk
from seqattn.layers.note_attention import NoteAttention
from seqattn.layers.residual_head import ResidualHead
from seqattn.layers.step_encoders import ENCODERS
from seqattn.layers.time_embedding import TimeEmbedding, query_times
from seqattn.layers.utde import UTDE, Branches, GateLevel, Mixture
from seqattn.models.interleaved_ehr_official import convert_state_dict, official_options

Fusion = Literal["interleaved", "mult", "concat", "mag", "tensor"]
Encoder = Literal["attention", "lstm", "cnn"]
CHOICES: dict[str, tuple[str | None, ...]] = {
    "fusion": (*FUSIONS, None),
    "encoder": ENCODERS,
    "modality": ("series", "notes"),
    "fill": ("forward", "published"),
}


class InterleavedEHR(nn.Module):
    """Logits from a patient's irregular observations and notes.

    The defaults are the published network for 17 variables, without its language model and its unused parameters.

    Args:
        num_channels: variables of the series. num_steps: bins of the window, and queries of the attention.
        num_labels: logits.
        embed_dim, embed_time: widths of the trunk and of the time embeddings.
        num_heads: of the trunk, dividing embed_dim; time_heads: of time attention, dividing embed_time.
        num_layers: of the trunk; cross_layers: of its layers that attend to the other modality, None means num_layers.
        gate: how fine the mixture of time attention and imputation is, see `layers.utde.MixtureGate`.
        branches: "both" of them, or "attention" or "imputation" alone.
        fusion: "interleaved", "mult", "concat", "mag" or "tensor"; None for a model of one modality.
        modality: "series" or "notes", the one that a model without fusion reads.
        encoder: "attention", "lstm" or "cnn", from steps to a vector; with the interleaved and MulT fusions, which
            attend throughout, "attention" only.
        kernel_size: bins of the convolution of the imputed grid, and of the CNN's.
        note_width: of a note vector.
        fill: how `regular` is made where it is not given, see `layers.imputation.regular_grid`.
        flags: see `layers.time_attention.TimeAttention`. time_init: see `layers.time_embedding.TimeEmbedding`.
        lstm_state: see `layers.step_encoders.StatesOfLSTM`.
        dropout: everywhere.

    Raises:
        SeqattnError: an option is unknown or out of range, or options do not go together.
    """

    def __init__(
        self, num_channels: int, num_steps: int, num_labels: int, *, embed_dim: int = 128, embed_time: int = 64,
        num_heads: int = 8, num_layers: int = 3, cross_layers: int | None = None, gate: GateLevel = "hidden",
        fusion: Fusion | None = "interleaved", encoder: Encoder = "attention", kernel_size: int = 1,
        modality: Literal["series", "notes"] = "series", branches: Branches = "both", time_heads: int = 8,
        note_width: int = 768, fill: Fill = "forward", flags: Literal["seen", "density"] = "seen",
        time_init: Literal["default", "spread"] = "default", lstm_state: Literal["both", "backward"] = "both",
        dropout: float = 0.1,
    ) -> None:  # fmt: skip
        super().__init__()
        cross_layers = num_layers if cross_layers is None else cross_layers
        sizes = {
            "num_channels": num_channels, "num_steps": num_steps, "num_labels": num_labels, "embed_dim": embed_dim,
            "num_heads": num_heads, "num_layers": num_layers, "cross_layers": cross_layers,
            "time_heads": time_heads, "note_width": note_width,
        }  # fmt: skip
        _check(sizes, {"fusion": fusion, "encoder": encoder, "modality": modality, "fill": fill})
        self.num_channels, self.num_steps, self.note_width, self.fill = num_channels, num_steps, note_width, fill
        self.series = self.notes = None
        if fusion is not None or modality == "series":
            self.series = UTDE(
                num_channels, embed_dim, embed_time, time_heads=time_heads, gate=gate, branches=branches,
                kernel_size=kernel_size, flags=flags, dropout=dropout,
            )  # fmt: skip
        if fusion is not None or modality == "notes":
            self.notes = NoteAttention(embed_time, time_heads, note_width, embed_dim, dropout)
        self.time_embedding = None
        if self.notes is not None or branches != "imputation":
            self.time_embedding = TimeEmbedding(embed_time, time_init, num_steps)
        self.trunk = build_trunk(
            fusion, encoder, embed_dim, num_heads, num_layers, cross_layers, num_steps,
            kernel_size=kernel_size, lstm_state=lstm_state, dropout=dropout,
        )  # fmt: skip
        self.head = ResidualHead(self.trunk.width, num_labels, dropout)

    @classmethod
    def from_official(
        cls, state_dict: dict[str, Tensor], *, num_channels: int, num_steps: int, num_labels: int, embed_dim: int,
        embed_time: int, num_heads: int, num_layers: int, cross_layers: int | None = None, gate: GateLevel = "hidden",
        fusion: Literal["interleaved", "mult", "concat"] | None = "interleaved", encoder: Encoder = "attention",
        kernel_size: int = 1, dropout: float = 0.1,
    ) -> Self:  # fmt: skip
        """The published network with its weights; entries of its language model are left out.

        Raises:
            SeqattnError: an entry is missing, has another shape, or belongs to a larger network of the kind.
        """
        model = cls(
            num_channels, num_steps, num_labels, embed_dim=embed_dim, embed_time=embed_time, num_heads=num_heads,
            num_layers=num_layers, cross_layers=cross_layers, gate=gate, fusion=fusion, encoder=encoder,
            kernel_size=kernel_size, dropout=dropout, **official_options(state_dict),
        )  # fmt: skip
        weights = convert_state_dict(state_dict, model)
        model.to(weights["head.out.weight"].dtype).load_state_dict(weights)
        return model

    def forward(
        self, values: Tensor | None, mask: Tensor | None, times: Tensor | None, regular: Tensor | None = None,
        note_vectors: Tensor | None = None, note_times: Tensor | None = None, note_mask: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Logits (batch, num_labels). What a model does not read may be None.

        Args:
            values: (batch, length, num_channels), standardised, of any content where not observed.
            mask: of that shape, True or 1 where observed.
            times: (batch, length) in [0, 1], ascending; 0 is the window's beginning and 1 its end.
            regular: (batch, num_steps, 2 · num_channels), of `layers.imputation.regular_grid`; None: made here.
            note_vectors: (batch, notes, note_width); None: no patient has a note.
            note_times: (batch, notes), 0 and 1 as for times. note_mask: True or 1 for a note, else padding, of any
                content; None means all. A patient need not have a note.
            lengths: (batch,) rows of each series, None means all; what lies past them changes nothing.

        Raises:
            SeqattnError: an argument is missing or a shape does not fit.
        """
        series = notes = None
        if self.series is not None:
            series = self.mixture(values, mask, times, regular, lengths).mixed
        if self.notes is not None:
            vectors, given_times, given = self._note_inputs(note_vectors, note_times, note_mask, values)
            notes = self.notes(self._query(), self._embedded(given_times), vectors, given)
        if series is None or notes is None:
            return self.head(self.trunk(notes if series is None else series))
        return self.head(self.trunk(notes, series))

    def mixture(
        self, values: Tensor | None, mask: Tensor | None, times: Tensor | None, regular: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> Mixture:  # fmt: skip
        """The series' embedding, its two branches and the gate between them. Arguments: as `forward`.

        Raises:
            SeqattnError: as `forward`, or the model reads notes only.
        """
        if self.series is None:
            raise SeqattnError(
                'InterleavedEHR: this model reads notes only: build it with a fusion or modality="series"'
            )
        values, observed, times = self._series_inputs(values, mask, times, lengths)
        if regular is None:
            regular = regular_grid(values, observed, times, self.num_steps, lengths=lengths, fill=self.fill)
        _check_shape("regular", regular, (len(values), self.num_steps, 2 * self.num_channels))
        key = self._embedded(times.masked_fill(~observed.any(-1), 0))
        return self.series(self._query(), key, values, observed, regular.to(self.head.out.weight.dtype), lengths)

    def attention(self, mask: Tensor, times: Tensor, lengths: Tensor | None = None) -> Tensor:
        """How much every step looks at every row of the series, (batch, time_heads, num_steps, length), for pictures.

        Raises:
            SeqattnError: the model has no time attention over series.
        """
        if self.series is None or self.series.attention is None or self.time_embedding is None:
            raise SeqattnError("InterleavedEHR: this model has no time attention over series to show")
        _, observed, times = self._series_inputs(mask, mask, times, lengths)
        query = self.time_embedding(query_times(self.num_steps, self.head.out.weight))
        key = self.time_embedding(times.masked_fill(~observed.any(-1), 0))
        return self.series.attention.row_weights(query, key, observed)

    def _embedded(self, times: Tensor) -> Tensor | None:
        return None if self.time_embedding is None else self.time_embedding(times)

    def _query(self) -> Tensor | None:
        """(num_steps, embed_time)."""
        return self._embedded(query_times(self.num_steps, self.head.out.weight))

    def _series_inputs(
        self, values: Tensor | None, mask: Tensor | None, times: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """values; mask as booleans, False past the ends; times."""
        if values is None or mask is None or times is None:
            raise SeqattnError("InterleavedEHR: this model reads series: give values, mask and times")
        if values.ndim != 3 or values.shape[2] != self.num_channels:
            wanted = f"(batch, length, {self.num_channels})"
            raise SeqattnError(f"InterleavedEHR: values has shape {tuple(values.shape)}: it must be {wanted}")
        _check_shape("mask", mask, values.shape)
        _check_shape("times", times, values.shape[:2])
        observed = mask != 0
        if lengths is not None:
            _check_shape("lengths", lengths, values.shape[:1])
            observed = observed & length_mask(lengths, values.shape[1])[..., None]
        return values, observed, times

    def _note_inputs(
        self, vectors: Tensor | None, times: Tensor | None, mask: Tensor | None, like: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """vectors; times, 0 for padding; mask as booleans; of at least one note, which may be padding."""
        if vectors is None:
            if like is None:
                raise SeqattnError("InterleavedEHR: this model reads notes: give note_vectors and note_times")
            vectors = like.new_zeros(len(like), 0, self.note_width)
            times = like.new_zeros(len(like), 0)
        if vectors.ndim != 3 or vectors.shape[2] != self.note_width or (like is not None and len(vectors) != len(like)):
            wanted = f"({'batch' if like is None else len(like)}, notes, {self.note_width})"
            raise SeqattnError(f"InterleavedEHR: note_vectors has shape {tuple(vectors.shape)}: it must be {wanted}")
        if times is None:
            raise SeqattnError("InterleavedEHR: note_vectors are given without note_times: give both")
        _check_shape("note_times", times, vectors.shape[:2])
        if mask is None:
            mask = times.new_ones(times.shape, dtype=torch.bool)
        _check_shape("note_mask", mask, vectors.shape[:2])
        mask = mask != 0
        if vectors.shape[1] == 0:
            vectors, times, mask = F.pad(vectors, (0, 0, 0, 1)), F.pad(times, (0, 1)), F.pad(mask, (0, 1))
        return vectors, times.masked_fill(~mask, 0), mask


def _check_shape(name: str, tensor: Tensor, shape: tuple[int, ...] | torch.Size) -> None:
    if tensor.shape != tuple(shape):
        raise SeqattnError(f"InterleavedEHR: {name} has shape {tuple(tensor.shape)}: it must be {tuple(shape)}")


def _check(sizes: dict[str, int], choices: dict[str, str | None]) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise SeqattnError(f"InterleavedEHR: {name} is {size}: it must be at least 1")
    for name, choice in choices.items():
        if choice not in CHOICES[name]:
            known = ", ".join(map(str, CHOICES[name]))
            advice = nearest(str(choice), map(str, CHOICES[name])) or f"; choose one of {known}"
            raise SeqattnError(f"InterleavedEHR: {name} is {choice!r}{advice}")
    fusion, encoder = choices["fusion"], choices["encoder"]
    if fusion in ("interleaved", "mult") and encoder != "attention":
        raise SeqattnError(
            f"InterleavedEHR: the {fusion} fusion attends throughout, so encoder cannot be {encoder!r}: give "
            '"attention", or another fusion'
        )
