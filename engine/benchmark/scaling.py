"""What training on many GPUs costs, on paper: operations, exchange, loading and memory, from shapes and assumed speeds.

Everything here but the numbers of parameters is an estimate. `engine/benchmark/processes.py` measures instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from diveparse.configs import BackboneConfig
from diveparse.datasets.constants import NUM_CHANNELS

NUMS_GPUS = (1, 8, 64, 512)
GPUS_PER_NODE = 8
BYTES_PER_NUMBER = 4  # weights and gradients are fp32, also where autocast computes in bf16
NUMBERS_PER_PARAMETER = 4  # the weight, its gradient and Adam's two means
# with two gradients of every product, backward takes twice the operations of forward
FORWARD_AND_BACKWARD = 3
BACKWARD_SHARE = 2 / 3
DEFAULT_BATCH_SIZE = 4  # clips of one GPU in an update
FRAMES_OF_LOADING = 24  # of the clips that `clips_per_worker` counts


@dataclass(frozen=True)
class Assumptions:
    """Speeds that the estimates rest on. None of them was measured here but that of loading.

    flops_per_s: of one GPU, sustained. Assumed: 40 % of the 989 TFLOP/s that NVIDIA's data sheet of the H100 SXM gives
    for dense bf16 products. 40 % is what large models reach when they are trained well (46 % for PaLM: Chowdhery et
    al., "PaLM", 2022, section 4.1). This project has measured no share of it.
    node_bytes_per_s: between the GPUs of a node, in one direction. Assumed: NVLink 4, half of the data sheet's
    900 GB/s, which counts both directions.
    network_bytes_per_s: between nodes. Assumed: one adapter of 400 Gbit/s a node.
    clips_per_worker: clips of 24 frames of 224 x 224 that a loader worker decodes from the training cache in a second.
    Measured on one core: 35.4 ms a clip, docs/PERFORMANCE.md, "Reading video".
    """

    flops_per_s: float = 0.4 * 989e12
    node_bytes_per_s: float = 450e9
    network_bytes_per_s: float = 50e9
    clips_per_worker: float = 28.0


@dataclass(frozen=True)
class DividedSpaceTime:
    """A TimeSformer as models/timesformer.py computes it. Its head is left out, which is small beside it."""

    backbone: BackboneConfig
    num_frames: int
    image_size: int  # height and width, pixels

    @property
    def num_patches(self) -> int:
        """Of one frame."""
        return (self.image_size // self.backbone.patch_size) ** 2

    @property
    def pixels_per_patch(self) -> int:
        return NUM_CHANNELS * self.backbone.patch_size**2

    @property
    def num_parameters(self) -> int:
        """With embed_dim d, mlp_ratio r, n patches of q pixels and t frames.

        A block has two attentions of 4 d^2 + 4 d, time_proj of d^2 + d, three norms of 2 d and an MLP of
        2 r d^2 + r d + d. Around the blocks are the patch embedding q d + d, the class token, 1 + n places, t times and
        the last norm.
        """
        d, hidden = self.backbone.embed_dim, int(self.backbone.embed_dim * self.backbone.mlp_ratio)
        block = 2 * (4 * d**2 + 4 * d) + d**2 + d + 3 * 2 * d + 2 * hidden * d + hidden + d
        embeddings = (self.pixels_per_patch + 1) * d + d + (1 + self.num_patches) * d + self.num_frames * d
        return embeddings + self.backbone.depth * block + 2 * d

    @property
    def forward_flops(self) -> int:
        """Of one clip. A product of (a, b) and (b, c) counts 2 a b c; norms, softmax and activations are not counted.

        With t frames, n patches of q pixels, h heads, embed_dim d and a hidden layer of r d, a block takes

            time attention:   6 t n d^2  queries, keys and values
                              4 t^2 n d  scores and means, of n sequences of t tokens
                              2 d^3 + 2 t n d^2  its projection and time_proj, multiplied beforehand
            space attention:  6 t (1 + n) d^2 + 4 t (1 + n)^2 d + 2 t (1 + n) d^2, of t sequences of 1 + n tokens
            MLP:              4 r (1 + t n) d^2

        The last block updates the class token alone. Its space attention has one query for each frame and head, which
        meets the tokens themselves: 8 t d^2 + 4 t h (1 + n) d, and its MLP takes 4 r d^2. Patches take 2 t n q d.
        """
        t, n, d = self.num_frames, self.num_patches, self.backbone.embed_dim
        hidden = int(d * self.backbone.mlp_ratio)
        time = 6 * t * n * d**2 + 4 * t**2 * n * d + 2 * d**3 + 2 * t * n * d**2
        space = 8 * t * (1 + n) * d**2 + 4 * t * (1 + n) ** 2 * d
        block = time + space + 4 * (1 + t * n) * hidden * d
        last_block = time + 8 * t * d**2 + 4 * t * self.backbone.num_heads * (1 + n) * d + 4 * hidden * d
        return 2 * t * n * self.pixels_per_patch * d + (self.backbone.depth - 1) * block + last_block


@dataclass(frozen=True)
class JointSpaceTime:
    """An encoder whose every token attends to every other, as V-JEPA 2's: a token is a tubelet of some frames.

    Source: Assran et al., "V-JEPA 2", 2025, and the defaults of transformers' `VJEPA2Config`. Its places are rotations,
    without parameters; predictor and head are left out.
    """

    embed_dim: int
    depth: int
    num_frames: int
    image_size: int  # height and width, pixels
    patch_size: int = 16
    tubelet_size: int = 2  # frames of one token
    mlp_ratio: float = 4.0

    @property
    def num_tokens(self) -> int:
        return self.num_frames // self.tubelet_size * (self.image_size // self.patch_size) ** 2

    @property
    def values_per_tubelet(self) -> int:
        return NUM_CHANNELS * self.tubelet_size * self.patch_size**2

    @property
    def num_parameters(self) -> int:
        """A block has an attention of 4 d^2 + 4 d, two norms of 2 d and an MLP of 2 r d^2 + r d + d."""
        d, hidden = self.embed_dim, int(self.embed_dim * self.mlp_ratio)
        block = 4 * d**2 + 4 * d + 2 * 2 * d + 2 * hidden * d + hidden + d
        return (self.values_per_tubelet + 1) * d + self.depth * block + 2 * d

    @property
    def forward_flops(self) -> int:
        """Of one clip of s tokens, counted as in `DividedSpaceTime`: a block takes 8 s d^2 + 4 s^2 d + 4 r s d^2, and
        the tubelets of v values each 2 s v d."""
        s, d = self.num_tokens, self.embed_dim
        hidden = int(d * self.mlp_ratio)
        block = 8 * s * d**2 + 4 * s**2 * d + 4 * s * hidden * d
        return 2 * s * self.values_per_tubelet * d + self.depth * block


Sizes = DividedSpaceTime | JointSpaceTime

MODELS: dict[str, Sizes] = {  # all of whose blocks are trained
    "ViT-B/16, 8 frames of 224²": DividedSpaceTime(BackboneConfig(), num_frames=8, image_size=224),
    "ViT-B/16, 24 frames of 224²": DividedSpaceTime(BackboneConfig(), num_frames=24, image_size=224),
    "ViT-B/16, 96 frames of 224²": DividedSpaceTime(BackboneConfig(), num_frames=96, image_size=224),
    "V-JEPA 2 ViT-L, 32 frames of 256²": JointSpaceTime(embed_dim=1024, depth=24, num_frames=32, image_size=256),
}


@dataclass(frozen=True)
class Estimate:
    """One model trained on a number of GPUs, of which each takes `batch_size` clips to an update."""

    sizes: Sizes
    num_gpus: int
    batch_size: int
    assumed: Assumptions

    @property
    def flops_per_clip(self) -> int:
        """Forward and backward, without what activation checkpointing or fused attention computes again."""
        return FORWARD_AND_BACKWARD * self.sizes.forward_flops

    @property
    def compute_s(self) -> float:
        """Forward and backward of an update."""
        return self.batch_size * self.flops_per_clip / self.assumed.flops_per_s

    @property
    def clips_per_s(self) -> float:
        """That all GPUs take where they wait neither for each other nor for data."""
        return self.num_gpus * self.assumed.flops_per_s / self.flops_per_clip

    @property
    def num_workers(self) -> int:
        """Loader workers of all GPUs that read as many clips.

        Decoding is taken to grow with the number of frames, and not to depend on the size that is cut out of them.
        """
        clips_per_worker = self.assumed.clips_per_worker * FRAMES_OF_LOADING / self.sizes.num_frames
        return math.ceil(self.clips_per_s / clips_per_worker)

    @property
    def exchanged_bytes(self) -> float:
        """That each process sends in an update."""
        return ring_bytes(self.sizes.num_parameters, self.num_gpus)

    @property
    def exchange_s(self) -> float:
        """A ring is as fast as its slowest link: the network, as soon as there is more than one node."""
        is_one_node = self.num_gpus <= GPUS_PER_NODE
        link = self.assumed.node_bytes_per_s if is_one_node else self.assumed.network_bytes_per_s
        return self.exchanged_bytes / link

    @property
    def update_s(self) -> float:
        """Where the exchange begins after the backward pass."""
        return self.compute_s + self.exchange_s

    @property
    def overlapped_update_s(self) -> float:
        """Where gradients are exchanged while the backward pass goes on, as DistributedDataParallel does: at best.

        Source: Li et al., "PyTorch Distributed", VLDB 2020. The last bucket is taken to cost nothing.
        """
        backward_s = BACKWARD_SHARE * self.compute_s
        return self.compute_s - backward_s + max(backward_s, self.exchange_s)

    @property
    def state_bytes(self) -> int:
        """Weights, gradients and Adam's means on each GPU, where each holds all of them. Activations come on top."""
        return NUMBERS_PER_PARAMETER * BYTES_PER_NUMBER * self.sizes.num_parameters

    @property
    def sharded_state_bytes(self) -> float:
        """The same where each GPU holds its share of all of them.

        Source: Rajbhandari et al., "ZeRO", SC 2020, stage 3. The block that is computed is gathered whole on top.
        """
        return self.state_bytes / self.num_gpus


def ring_bytes(num_parameters: int, num_processes: int) -> float:
    """Bytes that each process sends, and receives, when gradients in fp32 are averaged over all by a ring.

    Of N parts of the gradients a process sends all but one to add them up, and all but one to pass on the sums:
    2 (N - 1) / N times the gradients. Source: Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters
    of workstations", JPDC 2009.
    """
    return 2 * (num_processes - 1) / num_processes * BYTES_PER_NUMBER * num_parameters
