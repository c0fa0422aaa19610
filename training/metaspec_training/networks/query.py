"""DiffractionNet: from a structure to the spectra of its four detectors, with one query per wavelength.

A convolutional encoder turns the structure into tokens; wavelength queries read them by cross-attention. Each of the
improvements over the baseline is a switch of `DiffractionNetConfig`.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from metaspec_contract.process import Process
from metaspec_training.networks.beam import BeamFeatures
from metaspec_training.networks.layers import CircularConv, FourierMixing, NetworkConfig, ResidualBlock, on_grid


@dataclass(frozen=True)
class DiffractionNetConfig(NetworkConfig):
    """Shape and switches of the network; the defaults are the "full" preset.

    Attributes:
        memory_norm: LayerNorm on the tokens before cross-attention.
        film_scale: modulate the queries by (1 + gamma) * q + beta instead of q + beta; gamma starts at 0.
        detector_heads: an output head of its own for each detector.
        decoder_dropout: dropout in the decoder; the baseline has 0.03.
        fine_tokens: 64 tokens from the 8 x 8 map instead of 16 from the 4 x 4 map.
        channels: channels of the encoder's stem; its four stages have 1.5, 2, 3 and 4 times as many. A multiple of 32.
        width: d_model of tokens and queries.
        blocks: decoder blocks.
        heads: attention heads.
        wavelengths: number of wavelength queries; None for that of the data, or of the default device without data.
        beam: whether the encoder reads a crude solution, that of a scalar wave (`BeamPropagation`): an eighth improvement,
            which neither preset has.
        process: the device, whose geometry and materials enter the scalar wave; None for that of the data, or for the
            default device without data.
    """

    memory_norm: bool = True
    film_scale: bool = True
    detector_heads: bool = True
    decoder_dropout: float = 0.0
    fine_tokens: bool = True
    channels: int = 64
    width: int = 256
    blocks: int = 4
    heads: int = 8
    wavelengths: int | None = None
    beam: bool = False

    def __post_init__(self) -> None:
        for name in ("channels", "width", "blocks", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.config.{name} must be at least 1, got {getattr(self, name)}")
        if self.channels % 32:
            raise ValueError(f"model.config.channels must be a multiple of 32, got {self.channels}")
        if self.width % 2 or self.width % self.heads:
            raise ValueError(
                f"model.config.width must be even, and a multiple of heads, {self.heads}, got {self.width}"
            )

    def build(self) -> DiffractionNet:
        """The network, freshly initialised."""
        return DiffractionNet(self)

    def for_process(self, process: Process) -> DiffractionNetConfig:
        """The settings with a query for each wavelength of the process, and the process filled in.

        Raises:
            ValueError: another number of queries or another process is set.
        """
        count = len(process.wavelengths_nm)
        if self.wavelengths not in (None, count):
            raise ValueError(
                f"model.config.wavelengths is {self.wavelengths}, but the data have {count} wavelengths: "
                f"{process.wavelength_min_nm:g} to {process.wavelength_max_nm:g} nm in steps of {process.wavelength_step_nm:g}"
            )
        self.require_process(process)
        return replace(self, wavelengths=count, process=process)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DiffractionNetConfig:
        """The inverse of `to_dict`; checkpoints of earlier versions state no process."""
        return super().from_dict({"process": None} | values)

    @classmethod
    def baseline(cls) -> DiffractionNetConfig:
        """All improvements off."""
        return cls(memory_norm=False, film_scale=False, detector_heads=False, decoder_dropout=0.03, fine_tokens=False)


class DiffractionNet(nn.Module):
    """The network: density (B, 1, y, x), 1 = solid and 0 = void, to efficiencies (B, 2, 2, wavelengths) in [0, 1]."""

    def __init__(self, config: DiffractionNetConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or DiffractionNetConfig()
        width = config.width
        process = config.process or Process()
        wavelengths = config.wavelengths or len(process.wavelengths_nm)
        self.encoder = Encoder(config.channels, process if config.beam else None)
        stage3, stage4 = self.encoder.channels[-2:]
        self.tokens = nn.Conv2d(stage3 if config.fine_tokens else stage4, width, 1)
        self.global_token = nn.Sequential(nn.Linear(stage4, width), nn.SiLU())
        self.positions = nn.Parameter(0.02 * torch.randn(65 if config.fine_tokens else 17, width))
        self.memory_norm = nn.LayerNorm(width) if config.memory_norm else nn.Identity()
        self.queries = WavelengthQueries(wavelengths, width)
        self.film = FiLM(stage4, width, scale=config.film_scale)
        self.decoder = nn.ModuleList(
            DecoderBlock(width, config.heads, config.decoder_dropout) for _ in range(config.blocks)
        )
        self.norm = nn.LayerNorm(width)
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Dropout(0.05), nn.Linear(width, outputs))
            for outputs in ([1, 1, 1, 1] if config.detector_heads else [4])
        )
        self.bias = nn.Parameter(torch.full((4, wavelengths), -1.2))  # sigmoid(-1.2) = 0.23, a typical efficiency

    def forward(self, density: Tensor) -> Tensor:
        stage3, stage4 = self.encoder(on_grid(density))
        pooled = stage4.mean(dim=(2, 3))
        spatial = self.tokens(stage3 if self.config.fine_tokens else stage4).flatten(2).transpose(1, 2)
        memory = torch.cat([spatial, self.global_token(pooled).unsqueeze(1)], dim=1) + self.positions
        memory = self.memory_norm(memory)
        queries = self.film(self.queries(), pooled)
        for block in self.decoder:
            queries = block(queries, memory)
        queries = self.norm(queries)
        logits = torch.cat([head(queries) for head in self.heads], dim=-1).transpose(1, 2) + self.bias
        return torch.sigmoid(logits).unflatten(1, (2, 2))


GRID = 16
"""Points per axis of the map that the Fourier mixing and the scalar wave act on."""


class Encoder(nn.Module):
    """Stem and four residual stages: (B, 1, 128, 128) to the maps of stages 3 (3 C x 8 x 8) and 4 (4 C x 4 x 4).

    Args:
        stem: channels C of the stem.
        process: device of the scalar wave that is added to the 16 x 16 map; None for none.
    """

    def __init__(self, stem: int, process: Process | None = None) -> None:
        super().__init__()
        self.stem = nn.Sequential(CircularConv(1, stem, 5, stride=2), nn.GroupNorm(16, stem), nn.SiLU())
        self.channels = [stem, 3 * stem // 2, 2 * stem, 3 * stem, 4 * stem]
        self.stages = nn.ModuleList(
            nn.Sequential(ResidualBlock(a, b, stride=2, dropout=0.02), ResidualBlock(b, b, dropout=0.02))
            for a, b in itertools.pairwise(self.channels)
        )
        self.mixing = FourierMixing(2 * stem, GRID)
        self.beam = None if process is None else BeamFeatures(process, GRID, 2 * stem)

    def forward(self, density: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stages[1](self.stages[0](self.stem(2 * density - 1)))
        if self.beam is not None:
            x = x + self.beam(density)
        stage3 = self.stages[2](self.mixing(x))
        return stage3, self.stages[3](stage3)


class WavelengthQueries(nn.Module):
    """Sinusoidal embedding of the wavelength, scaled to [0, 1], through Linear and SiLU: (wavelengths, width)."""

    embedding: Tensor

    def __init__(self, wavelengths: int, width: int) -> None:
        super().__init__()
        position = torch.linspace(0, 1, wavelengths, dtype=torch.float64)
        frequency = torch.logspace(0, math.log10(wavelengths), width // 2, dtype=torch.float64)
        angle = torch.pi * torch.outer(position, frequency)
        self.register_buffer("embedding", torch.cat([angle.sin(), angle.cos()], dim=1).float(), persistent=False)
        self.linear = nn.Linear(width, width)

    def forward(self) -> Tensor:
        return nn.functional.silu(self.linear(self.embedding))


class FiLM(nn.Module):
    """Feature-wise modulation of the queries by the pooled map (Perez et al., AAAI 2018): (L, D), (B, C) to (B, L, D)."""

    def __init__(self, inputs: int, width: int, scale: bool) -> None:
        super().__init__()
        self.scale = scale
        self.hidden = nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Dropout(0.05))
        self.out = nn.Linear(width, 2 * width if scale else width)
        if scale:  # gamma starts at exactly 0: the modulation starts as the baseline's shift
            nn.init.zeros_(self.out.weight[:width])
            nn.init.zeros_(self.out.bias[:width])

    def forward(self, queries: Tensor, pooled: Tensor) -> Tensor:
        modulation = self.out(self.hidden(pooled)).unsqueeze(1)
        if not self.scale:
            return queries + modulation
        gamma, beta = modulation.chunk(2, dim=-1)
        return (1 + gamma) * queries + beta


class DecoderBlock(nn.Module):
    """Cross-attention to the tokens, a depthwise convolution along wavelength, a feed-forward; pre-norm, residual."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query_norm, self.query = nn.LayerNorm(width), nn.Linear(width, width)
        self.key, self.value = nn.Linear(width, width), nn.Linear(width, width)
        self.attention_out = nn.Linear(width, width)
        self.conv_norm = nn.LayerNorm(width)
        self.depthwise = nn.Conv1d(width, width, 15, padding=7, groups=width)
        self.pointwise = nn.Conv1d(width, width, 1)
        self.act = nn.SiLU()
        self.feed_norm = nn.LayerNorm(width)
        self.feed = nn.Sequential(
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(4 * width, width),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        x = x + self.attention(self.query_norm(x), memory)
        y = self.conv_norm(x).transpose(1, 2)
        x = x + self.pointwise(self.act(self.depthwise(y))).transpose(1, 2)
        return x + self.feed(self.feed_norm(x))

    def attention(self, x: Tensor, memory: Tensor) -> Tensor:
        """Multi-head attention, written out so that its gradient exports as plain products: (B, L, D), (B, T, D)."""
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query(x), self.key(memory), self.value(memory))
        )
        weights = torch.softmax(query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5, dim=-1)
        return self.attention_out((weights @ value).transpose(1, 2).flatten(2))
