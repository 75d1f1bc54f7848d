"""ResNet's last stage as the head of pooled rois. Source: arXiv 1512.03385, appendix A."""

from flax import linen as nn
from jaxtyping import Array, Float

from maskrcnn_jax.models.resnet import ResNet
from maskrcnn_jax.models.roi_heads import BoxHead


class Res5Head(ResNet):
    """res5 on pooled rois, shared by the box and the mask head: Detectron2's `Res5ROIHeads`.

    Its fields and parameter paths are the backbone's: res5_block0/conv1, ...
    """

    @nn.compact
    def __call__(self, pooled: Float[Array, "R S S F"], train: bool) -> Float[Array, "R T T f"]:
        """pooled: [R, S, S, F]. Returns half the side."""
        return self._stage(3, pooled, train)


class MeanBoxHead(BoxHead):
    """The box head on each roi's mean: `num_fcs` dense layers, none in Detectron2."""

    def __call__(
        self, pooled: Float[Array, "R S S F"], train: bool
    ) -> tuple[Float[Array, "R C1"], Float[Array, "R C 4"]]:
        """As `BoxHead`."""
        return super().__call__(pooled.mean((1, 2), keepdims=True), train)
